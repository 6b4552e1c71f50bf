"""How fast the command line trains, beside a bare loop and the loops of other libraries, in turn.

    python benchmarks/throughput.py --rounds 7 --out benchmarks/results/throughput_HARDWARE_YEAR-MONTH.md
    python benchmarks/throughput.py --shapes words --loops '[package,bare]' --rounds 15

Every measurement is a process of its own: `train.py fit` with its loader, logging, progress bar and checkpoints, and
the loops of `other_loops.py`, over the windows of one epoch (`shapes.py`); tokens per second after the first 20
windows. They take turns, A B C A B C; ratios are of neighbours in a round. The command line fuses the step of an
optimizer, where torch's default does not: `package_unfused` and `bare_fused` tell what this brings. ignite and fastai
are installed by name, each in an environment of its own beside this one, and are left out where that fails. `floor` is
what the matrix products of a window would take alone.

Run it on an idle machine. The table is printed after every round, and written where --out says.
"""

import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from jsonargparse import auto_cli
from other_loops import LOOPS, WARM_UP
from shapes import SHAPES, Shape

HERE = Path(__file__).resolve().parent
PEERS = {"ignite": "pytorch-ignite", "fastai": "fastai"}
PACKAGE: dict[str, list[str]] = {"package": [], "package_unfused": ["--optimizer.fused=false"]}
# What a loop is compared with, besides the bare loop.
SAME_OPTIMIZER = {"package": "bare_fused"}


def environment_of(loop: str) -> str | None:
    """Returns the Python to run a loop with; a peer's environment is made when it is first asked for."""
    if loop not in PEERS:
        return sys.executable
    folder = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-{loop}")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        constraints = HERE.parent / "constraints.txt"
        install = [python, "-m", "pip", "install", "-q", "-c", constraints, "torch", "numpy", PEERS[loop]]
        for command in ([sys.executable, "-m", "venv", folder], install):
            if subprocess.run(command, check=False).returncode:
                return None
        (folder / "ready").touch()
    return str(python)


def tokens_per_second(loop: str, name: str, folder: Path, python: str) -> float:
    """Runs a loop over an epoch in a process of its own."""
    if loop not in PACKAGE:
        command = [python, "-W", "ignore", str(HERE / "other_loops.py"), loop, name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        return float(done.stdout.split()[-1])
    shape = SHAPES[name]
    run = tempfile.mkdtemp(dir=folder)
    command = [python, str(HERE.parent / "train.py"), *shape.command_line(shape.write_text(folder)), *PACKAGE[loop]]
    done = subprocess.run(command, cwd=run, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    (metrics,) = Path(run).glob("runs/*/*/metrics.csv")
    return _mean_speed(metrics, shape)


def _mean_speed(metrics: Path, shape: Shape) -> float:
    """Returns tokens per second after the warm-up, from rows of the tokens and the speed since the last one."""
    tokens, seconds, before = 0.0, 0.0, 0.0
    for row in csv.DictReader(metrics.read_text().splitlines()):
        if row["train/tokens_per_second"]:
            here = float(row["tokens"])
            if before >= WARM_UP * shape.tokens_per_window:
                tokens += here - before
                seconds += (here - before) / float(row["train/tokens_per_second"])
            before = here
    return tokens / seconds


def spread(values: list[float]) -> str:
    """Returns the median, and the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def interval(ratios: list[float]) -> str:
    """Returns the 95 % interval of the median, from the order of the ratios alone (the sign test)."""
    size, ordered = len(ratios), sorted(ratios)
    probability, below = 0.5**size, 0.0
    for rank in range(size // 2):
        below += probability
        if below > 0.025:
            return "-" if rank == 0 else f"{ordered[rank - 1]:.2f} to {ordered[size - rank]:.2f}"
        probability *= (size - rank) / (rank + 1)
    return "-"


def table(speeds: dict[str, dict[str, list[float]]]) -> str:
    """Formats speeds and their ratios to those of other loops, one row each."""
    lines = [
        "| work | loop | tokens/s, median | compared with | ratio (quartiles) | 95 % interval of it | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of_loops in speeds.items():
        for loop, values in of_loops.items():
            for other in ("bare", SAME_OPTIMIZER.get(loop)):
                if other not in of_loops:
                    continue
                ratios = [value / beside for value, beside in zip(values, of_loops[other], strict=False)]
                lines.append(
                    f"| {SHAPES[name].name} | {loop} | {statistics.median(values):,.0f} | {other} | {spread(ratios)} | "
                    f"{interval(ratios)} | {len(ratios)} |"
                )
    return "\n".join(lines)


def heading() -> str:
    """Says what was measured, on what."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    facts = [
        f"commit {commit}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("torch", "lightning")),
        f"{os.cpu_count()} cores",
        f"{torch.get_num_threads()} threads",
    ]
    return (
        f"# Throughput of training\n\n`python benchmarks/throughput.py {' '.join(sys.argv[1:])}`, {date.today()}; "
        f"{', '.join(facts)}. Adam, clipped at .25, state carried, k1 = k2; ignite has no place to clip.\n"
    )


def main(
    shapes: list[str] = ["bytes", "words", "large"],  # noqa: B006 - jsonargparse shows it in --help
    loops: list[str] = ["floor", *PACKAGE, *LOOPS],  # noqa: B006
    rounds: int = 7,
    out: Path | None = None,
) -> None:
    """Measures and prints.

    Args:
        shapes: Which works, of shapes.py.
        loops: Which loops; bare is needed for ratios.
        rounds: Measurements of each.
        out: A file for the table.
    """
    pythons = {loop: environment_of(loop) for loop in loops}
    for loop, python in pythons.items():
        if python is None:
            print(f"{loop}: could not be installed, left out")
    speeds: dict[str, dict[str, list[float]]] = {
        name: {loop: [] for loop, python in pythons.items() if python} for name in shapes
    }
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, of_loops in speeds.items():
                for loop, values in of_loops.items():
                    values.append(tokens_per_second(loop, name, Path(folder), pythons[loop] or ""))
                    print(f"{name} {loop} {values[-1]:,.0f}", flush=True)
            print(table(speeds), flush=True)
            if out is not None:
                out.write_text(f"{heading()}\n{table(speeds)}\n")


if __name__ == "__main__":
    auto_cli(main)
