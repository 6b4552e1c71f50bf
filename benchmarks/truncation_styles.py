"""The styles of truncation that r2rt.com (2016) compares, on Penn Treebank, from configs/truncation_styles/ alone.

    python benchmarks/truncation_styles.py PTB_FOLDER OUT --jobs 2

Runs `train.py fit` for every config and seed, one thread each, at low priority, and prints the least validation loss in
nats per word. A run that was stopped is continued by the same command; a finished one is not repeated.
"""

import csv
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jsonargparse import auto_cli

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("true_5", "cut_5", "true_10", "cut_10")
PUBLISHED = {"true_5": 5.01, "cut_5": 5.04, "true_10": 5.00, "cut_10": 5.03}


def curve(run: Path) -> list[float]:
    """Returns the validation losses of a run, one an epoch."""
    if not (run / "metrics.csv").exists():
        return []
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["val/nats_per_token"]) for row in csv.DictReader(file) if row.get("val/nats_per_token")]


def fit(config: str, seed: int, data: Path, out: Path, num_epochs: int) -> None:
    run = out / config / f"seed_{seed}"
    if len(curve(run)) >= num_epochs:
        return
    command = [sys.executable, str(ROOT / "train.py"), "fit"]
    command += ["--config", str(ROOT / "configs" / "truncation_styles" / f"{config}.yaml")]
    command += [f"--data.path={data}", f"--seed_everything={seed}", f"--run_name=seed_{seed}", f"--runs_dir={out}"]
    command += [f"--trainer.max_epochs={num_epochs}", "--trainer.enable_progress_bar=false"]
    if (run / "checkpoints").exists():
        command.append(f"--ckpt_path={run}")
    with open(out / f"{config}_{seed}.log", "a") as log:
        subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)


def main(data: Path, out: Path, jobs: int = 2, seeds: tuple[int, ...] = (1, 2, 3), num_epochs: int = 20) -> None:
    """Trains what is not yet trained, and prints a table.

    Args:
        data: The folder with train.txt, valid.txt and test.txt.
        out: The folder of the runs.
        jobs: Runs at the same time.
        seeds: A run each.
        num_epochs: Epochs.
    """
    out.mkdir(parents=True, exist_ok=True)
    os.nice(19)
    with ThreadPoolExecutor(jobs) as pool:
        for seed in seeds:
            for config in CONFIGS:
                pool.submit(fit, config, seed, data.resolve(), out.resolve(), num_epochs)
    print("| config | epochs | least validation nats/word, median | of the seeds | r2rt.com |\n|---|---|---|---|---|")
    for config in CONFIGS:
        curves = [curve(out / config / f"seed_{seed}") for seed in seeds]
        least = [min(values) for values in curves if values]
        if least:
            epochs = ", ".join(str(len(values)) for values in curves)
            seen = ", ".join(f"{value:.3f}" for value in least)
            print(f"| {config} | {epochs} | {statistics.median(least):.3f} | {seen} | {PUBLISHED[config]:.2f} |")


if __name__ == "__main__":
    auto_cli(main)
