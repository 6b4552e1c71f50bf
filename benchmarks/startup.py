"""CPU seconds that a command takes before it does anything: imports, help, a generation of nothing.

    python benchmarks/startup.py --rounds 7
    git worktree add ../before REVISION && python benchmarks/startup.py --trees '[../before,.]'

Every measurement is a process of its own in one of the trees, in turn; medians with quartiles. These commands wait for
nothing but their files, and CPU time depends less than the wall's on what else the machine does.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "import lit_tbptt": ["-c", "import lit_tbptt"],
    "from lit_tbptt import LitLanguageModel": ["-c", "from lit_tbptt import LitLanguageModel"],
    "train.py --help": ["train.py", "--help"],
    "train.py fit --help": ["train.py", "fit", "--help"],
    "train.py plot --help": ["train.py", "plot", "--help"],
    "train.py generate --help": ["train.py", "generate", "--help"],
    "train.py generate (no tokens)": ["train.py", "generate", "--ckpt_path={checkpoint}", "--num_tokens=0"],
}


def train(tree: Path, folder: Path) -> Path:
    """Trains two steps in a tree and returns the checkpoint: trees need not read each other's."""
    (folder / "text.txt").write_text("some words and more of them\n" * 40)
    options = ["--data.path=text.txt", "--data.num_lanes=2", "--data.eval_num_lanes=2", "--trainer.max_steps=2"]
    command = [sys.executable, str(tree / "train.py"), "fit", *options]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (checkpoint,) = folder.rglob("last.ckpt")
    return checkpoint


def seconds(command: list[str], tree: Path) -> float:
    """Returns the CPU seconds of a command in a tree, of user and system together."""
    before = os.times()
    subprocess.run([sys.executable, *command], cwd=tree, check=False, capture_output=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main(trees: list[Path] = [ROOT], rounds: int = 7) -> None:  # noqa: B006 - jsonargparse shows it in --help
    """Measures and prints a table.

    Args:
        trees: Working trees of this repository.
        rounds: Measurements of each command in each tree.
    """
    trees = [tree.resolve() for tree in trees]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {}
        for number, tree in enumerate(trees):
            place = Path(folder, str(number))
            place.mkdir()
            checkpoints[tree] = train(tree, place)
        times: dict[tuple[str, Path], list[float]] = {(name, tree): [] for name in COMMANDS for tree in trees}
        for _ in range(rounds):
            for (name, tree), values in times.items():
                command = [word.format(checkpoint=checkpoints[tree]) for word in COMMANDS[name]]
                values.append(seconds(command, tree))
    print(f"| CPU seconds | {' | '.join(tree.name for tree in trees)} |\n|---|{'---|' * len(trees)}")
    for name in COMMANDS:
        cells = []
        for tree in trees:
            low, middle, high = statistics.quantiles(times[name, tree], n=4, method="inclusive")
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    auto_cli(main)
