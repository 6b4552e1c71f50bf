"""Adaptive horizons beside fixed ones: on Penn Treebank at equal tokens and steps, and on the echo task from k2 = 1.

    python benchmarks/adaptive_horizon.py ptb PTB_FOLDER OUT
    python benchmarks/adaptive_horizon.py echo

PTB_FOLDER has train.txt, valid.txt and test.txt (Mikolov's split). Every row trains an LSTM of 200 units for 5 epochs
with the same windows of k1 = 10, so that only k2 differs: fixed at 10 or 100, or chosen by AdaptiveHorizon from a limit
of the relative bias. The last row changes k1 too, as the publication does: a tenth of the steps. The runs are one after
the other, at low priority; the same command continues where it was interrupted. `python train.py plot` draws k2 over
training, given OUT/runs/default/*.

    python benchmarks/adaptive_horizon.py ptb PTB_FOLDER OUT --num_lines 420 --num_epochs 1     on 1 % of the text

The echo task (examples/echo.py) is trained once through 10,000 steps of 200 lanes, about a minute for every row.
"""

import csv
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from jsonargparse import auto_cli

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
MODEL = [
    "--data.tokenizer=word",
    "--data.num_lanes=32",
    "--model.core=LSTM",
    "--model.core.hidden_size=200",
    "--model.core.input_size=200",
    "--model.embedding_dropout=0.2",
    "--model.output_dropout=0.2",
    "--model.clip_norm=0.25",
    "--optimizer=Adam",
    "--optimizer.lr=2e-3",
    "--lr_scheduler=null",
]
TRAINER = [
    "--trainer.max_steps=-1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.val_check_interval=1.0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def runs(max_k2: int, every_n_steps: int) -> dict[str, list[str]]:
    """Returns the options of each run by its name."""
    found = {f"fixed_k2_{k2}": ["--model.k1=10", f"--model.k2={k2}"] for k2 in (10, 100)}
    for limit in (0.9, 0.5, 0.1):
        found[f"adaptive_{limit}"] = [
            "--model.k1=10",
            "--trainer.callbacks+=AdaptiveHorizon",
            f"--trainer.callbacks.max_relative_bias={limit}",
            f"--trainer.callbacks.max_k2={max_k2}",
            f"--trainer.callbacks.every_n_steps={every_n_steps}",
        ]
    return found | {"fixed_k1_100": ["--model.k1=100"]}


def train(name: str, options: list[str], out: Path) -> None:
    """Trains one run, or continues it, and writes the CPU seconds of this part."""
    folder = out / "runs" / "default" / name
    resumed = ["--ckpt_path=last"] if any(folder.glob("checkpoints/*.ckpt")) else []
    command = ["nice", "-n", "10", sys.executable, str(ROOT / "train.py"), "fit", *options, *MODEL, *TRAINER]
    command += [f"--runs_dir={out / 'runs'}", f"--run_name={name}", *resumed]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(out / f"{name}.log", "a") as log:
        status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if status:
        sys.exit(f"{name} ended with {status}; see {log.name}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (out / f"{name}.json").write_text(json.dumps({"cpu_seconds": None if resumed else seconds}))


def row(name: str, out: Path) -> str:
    """Returns the row of a run that has ended."""
    with open(out / "runs" / "default" / name / "metrics.csv", newline="") as stream:
        logged = list(csv.DictReader(stream))

    def column(key: str) -> list[float]:
        return [float(each[key]) for each in logged if each.get(key)]

    horizons = [int(k2) for k2 in column("horizon/k2")]
    k2 = f"{min(horizons)} to {max(horizons)}, median {statistics.median(horizons):g}" if horizons else ""
    seconds = json.loads((out / f"{name}.json").read_text())["cpu_seconds"]
    printed = re.findall(r"^perplexity +\S+ +(\S+)$", (out / f"{name}.log").read_text(), re.MULTILINE)
    best, test = min(column("val/perplexity")), float(printed[-1])
    cells = [name, f"{best:.1f}", f"{test:.1f}", logged[-1]["step"], k2, f"{seconds:.0f}" if seconds else ""]
    return f"| {' | '.join(cells)} |"


def ptb(text: Path, out: Path, num_epochs: int = 5, max_k2: int = 200, every_n_steps: int = 500,
         num_lines: int | None = None) -> None:  # fmt: skip
    """Trains every run that has not ended yet and prints the table.

    Args:
        text: The folder of Penn Treebank.
        out: The folder of the results.
        num_epochs: The number of epochs.
        max_k2: The longest horizon that may be chosen.
        every_n_steps: How often k2 is chosen.
        num_lines: Train on the first lines only, and validate and test on a tenth of their number.
    """
    out.mkdir(parents=True, exist_ok=True)
    if num_lines is not None:
        (out / "text").mkdir(exist_ok=True)
        for split in ("train", "valid", "test"):
            lines = (text / f"{split}.txt").read_text().splitlines(keepends=True)
            part = lines[: num_lines if split == "train" else max(1, num_lines // 10)]
            (out / "text" / f"{split}.txt").write_text("".join(part))
        text = out / "text"
    print("| run | valid perplexity, best epoch | test perplexity | steps | k2 chosen | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for name, options in runs(max_k2, every_n_steps).items():
        if not (out / f"{name}.json").exists():
            train(name, [f"--data.path={text}", f"--trainer.max_epochs={num_epochs}", *options], out)
        print(row(name, out), flush=True)


def echo(limits: tuple[float, ...] = (0.5, 0.1), seeds: tuple[int, ...] = (1, 2, 3), every_n_steps: int = 100) -> None:
    """Trains the echo task with k1 = 1, and k2 = 1 at first, and prints what was chosen and learned.

    Args:
        limits: The limits of the relative bias.
        seeds: The seeds of data and weights.
        every_n_steps: How often k2 is chosen.
    """
    import echo as task
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from lit_tbptt import AdaptiveHorizon, RunFolder
    from lit_tbptt.training.loggers import RunCSVLogger

    torch.set_num_threads(1)
    print(
        "| max_relative_bias | seed | nats per step | k2 chosen first | quartiles | last |\n|---|---|---|---|---|---|"
    )
    for limit in limits:
        for seed in seeds:
            seed_everything(seed, verbose=False)
            with tempfile.TemporaryDirectory() as folder:
                callback = AdaptiveHorizon(limit, max_k2=32, every_n_steps=every_n_steps)
                trainer = Trainer(
                    max_epochs=1,
                    accelerator="cpu",
                    logger=RunCSVLogger(RunFolder(folder)),
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    callbacks=[callback],
                )
                train, valid = task.Echoes(200, 10_000, 1, seed), task.Echoes(200, 2000, 1, seed + 1000)
                trainer.fit(task.Echo(1, None, True), train, valid)
                with open(Path(folder) / "metrics.csv", newline="") as stream:
                    k2 = [int(each["horizon/k2"]) for each in csv.DictReader(stream) if each["horizon/k2"]]
            nats = trainer.callback_metrics["val/loss"].item()
            quartiles = ", ".join(f"{value:g}" for value in statistics.quantiles(k2, n=4))
            print(f"| {limit} | {seed} | {nats:.4f} | {k2[0]} | {quartiles} | {k2[-1]} |", flush=True)


if __name__ == "__main__":
    auto_cli([ptb, echo])
