"""Peak memory of a training step against the horizon, and of a whole training against the length of the corpus.

    python benchmarks/memory.py --plot docs/memory.png

Every figure is of a process of its own, in MB above what the process holds before, on the CPU (Linux). First table: the
peak of resident memory (VmHWM) over three windows of the default job's model, 16 lanes, k1 = 64. Second table: full
backpropagation through 100,000 steps, 4 lanes. Third table: the peak of anonymous memory, sampled every 2 ms, while
documents of 20 kB are tokenized, and while a small model trains on every token of them. About ten minutes.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from jsonargparse import auto_cli

HORIZONS = (64, 128, 256, 512, 1024, 2048, 4096)
CORPORA = (1, 3, 10, 30, 100)  # MB


def status(key: str) -> float:
    """Returns a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def step_memory(k1: int, k2: int, recompute_every: int | None, num_lanes: int) -> float:
    """Trains three full windows, after those that fill the context, and returns their peak."""
    from horizon_time import Training

    from lit_tbptt import Window

    def windows(number: int, num_time_steps: int) -> Iterator[Window]:
        return (Window(*torch.randint(256, (2, num_lanes, num_time_steps))) for _ in range(number))

    torch.set_flush_denormal(True)
    training = Training(k1, k2, recompute_every)
    training.seconds(windows(1, 8))  # the optimizer's state is there now
    training.carry, before = None, status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    with torch.no_grad():
        for window in windows((k2 - k1) // k1, k1):
            cost = training.truncation(training.task, window, training.carry)
            training.carry = cost.carry.detach()
    training.seconds(windows(3, k1))
    return status("VmHWM") - before


def corpus_memory(folder: str, train: bool) -> float:
    """Tokenizes a corpus, or trains one epoch on its tokens, and returns the peak."""
    os.environ |= {"HF_HOME": f"{folder}/hf", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    from lightning.pytorch import Trainer

    from lit_tbptt import LSTM, LitLanguageModel, TextLanesDataModule

    torch.set_flush_denormal(True)
    options = {"tokenizer": "char", "num_lanes": 256, "k1": 64, "windows_per_batch": 8, "val_fraction": 0}
    data = TextLanesDataModule(f"{folder}/texts", **options)
    model = LitLanguageModel(LSTM(8), k1=64, k2=128)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    peak, before, done = 0.0, status("RssAnon"), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, status("RssAnon") - before)

    thread = threading.Thread(target=sample)
    thread.start()
    trainer.fit(model, data) if train else data.prepare_data()
    done.set()
    thread.join()
    return peak


def write_corpus(folder: Path, megabytes: int) -> None:
    """Writes documents of 20 kB."""
    words = [f"word{number}" for number in range(1000)]
    generator = random.Random(1)
    (folder / "texts").mkdir()
    for number in range(50 * megabytes):
        text = " ".join(generator.choices(words, k=2570))[:20_000]
        (folder / "texts" / f"train-{number:05}.txt").write_text(text)


def measured(function: str, *arguments: object) -> float:
    """Runs one of the functions above in a process of its own."""
    code = f"import memory; print(memory.{function}(*{arguments!r}))"
    # What is freed goes back at once: the peak is then what is needed, and not what the C library keeps for later.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def main(plot: Path | None = None) -> None:
    """Measures everything, prints the tables and draws the plot."""
    print("| k2 | all kept: MB | recompute_every 64: MB |\n|---|---|---|")
    kept, recomputed = [], []
    for k2 in HORIZONS:
        kept.append(measured("step_memory", 64, k2, None, 16))
        recomputed.append(measured("step_memory", 64, k2, 64, 16))
        print(f"| {k2} | {kept[-1]:.0f} | {recomputed[-1]:.0f} |", flush=True)
    print("\n| full BPTT, 100,000 steps | MB |\n|---|---|")
    print(f"| all kept | {measured('step_memory', 100_000, 100_000, None, 4):.0f} |", flush=True)
    print(f"| recompute_every 316 | {measured('step_memory', 100_000, 100_000, 316, 4):.0f} |", flush=True)
    print("\n| corpus MB | tokenizing: MB | training: MB |\n|---|---|---|")
    corpora = []
    for megabytes in CORPORA:
        with tempfile.TemporaryDirectory(prefix="lit_tbptt_memory_") as folder:
            write_corpus(Path(folder), megabytes)
            corpora.append([measured("corpus_memory", folder, train) for train in (False, True)])
        print(f"| {megabytes} | {corpora[-1][0]:.0f} | {corpora[-1][1]:.0f} |", flush=True)
    if plot is not None:
        draw(plot, kept, recomputed, corpora)


def draw(path: Path, kept: list, recomputed: list, corpora: list) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog(HORIZONS, kept, "o-", label="all kept")
    left.loglog(HORIZONS, recomputed, "s-", label="recompute_every=64")
    left.set(xlabel="horizon k2 (k1 = 64)", ylabel="peak MB of a step", title="against the horizon")
    left.legend()
    for stage, mark in enumerate(("o-", "s-")):
        right.semilogx(CORPORA, [found[stage] for found in corpora], mark, label=("tokenizing", "training")[stage])
    right.set(xlabel="MB of text", ylabel="peak MB", title="against the corpus (k1 = 64, k2 = 128)")
    right.set_ylim(bottom=0)
    right.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    auto_cli(main)
