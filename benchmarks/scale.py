"""What grows with processes and with the place in the corpus, and what does not.

    python benchmarks/scale.py position
    python benchmarks/scale.py ranks

`position`: seconds from `fit` to the first optimizer step, and resident memory, of runs that are resumed early and late
in a stored corpus of made-up tokens; they take turns. `ranks`: runs of 1, 2 and 4 processes under `torchrun`, on a
stream of parquet files of made-up text, with one reader and with four: memory of each process, size of the checkpoint,
seconds to resume, bytes that all processes read in one epoch, and what the agreement costs a window. Linux only.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningDataModule, Trainer

from lit_tbptt import LSTM, LitLanguageModel, RunCheckpoint, StridedLanes, TextLanesDataModule
from lit_tbptt.data import make_tokenizer

LANES, K1, WINDOWS = 16, 64, 8


class FirstStep(Callback):
    """Notes when the first optimizer step was done, and the memory then."""

    def on_window_end(self, trainer, pl_module, window):
        if not hasattr(self, "at"):
            self.at, self.resident = time.perf_counter(), proc("status", "VmRSS") / 1024


class StoredTokens(LightningDataModule):
    """Made-up tokens, as a token file holds them, from a window on."""

    def __init__(self, file: str, window: int) -> None:
        super().__init__()
        self.file, self.window, self.tokenizer = file, window, make_tokenizer("byte", ())

    def train_dataloader(self) -> StridedLanes:
        ids = np.memmap(self.file, np.uint8, "r")
        lanes = StridedLanes(ids, self.tokenizer.eos, LANES, K1, WINDOWS, bytes_per_token=1.0)
        lanes.load_state_dict({"position": {"window": self.window}, "skip": 0, "epoch": 0})
        return lanes


def proc(file: str, name: str) -> int:
    """Returns a number that the system keeps of this process."""
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def train(data: LightningDataModule, folder: str, max_steps: int, ckpt_path: str | None) -> tuple[Trainer, dict]:
    """Trains, and returns the trainer and what the first step took."""
    torch.set_num_threads(1)
    first, num_ranks = FirstStep(), int(os.environ.get("WORLD_SIZE", 1))
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[first, RunCheckpoint(save_top_k=0)],
    )
    model = LitLanguageModel(LSTM(256), k1=K1)
    start = time.perf_counter()
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer, {"seconds": first.at - start, "resident": first.resident}


def at(file: str, window: int, folder: str, resume: bool) -> None:
    """Makes a checkpoint at a window, or resumes from it and prints what that took."""
    start = f"{folder}/start.ckpt"
    _, found = train(StoredTokens(file, window), folder, 1 + resume, start if resume else None)
    if not resume:
        os.replace(f"{folder}/checkpoints/last.ckpt", start)
    print(json.dumps(found))


def position(tokens: tuple[int, ...] = (10_000, 100_000_000), rounds: int = 5) -> None:
    """Prints the table of resumes."""
    with tempfile.TemporaryDirectory() as root:
        file = f"{root}/ids.bin"
        np.random.default_rng(1).integers(0, 256, max(tokens) * 11 // 10, np.uint8).tofile(file)
        found: dict[int, list[dict]] = {place: [] for place in tokens}

        def run(place: int, resume: bool) -> dict:
            given = [f"--file={file}", f"--window={place // (LANES * K1)}", f"--folder={root}/{place}"]
            return last_line([sys.executable, __file__, "at", *given, f"--resume={str(resume).lower()}"])

        for place in tokens:
            run(place, False)
        for _ in range(rounds):
            for place in tokens:
                found[place].append(run(place, True))
        print("| tokens before | seconds to the first step | resident MB |\n|---|---|---|")
        for place, runs in found.items():
            print(f"| {place:,} | {spread(runs, 'seconds')} | {spread(runs, 'resident')} |")


def worker(corpus: str, folder: str, num_readers: int) -> None:
    """One process: trains, and resumes where there is a checkpoint; then reads an epoch."""
    last = Path(folder) / "checkpoints" / "last.ckpt"
    resume = last.exists()
    data = TextLanesDataModule(corpus, num_lanes=LANES, k1=K1, streaming=True, num_readers=num_readers, val_fraction=0)
    trainer, found = train(data, folder, 80 if resume else 40, str(last) if resume else None)
    found |= {"resident": proc("status", "VmRSS") / 1024, "checkpoint": last.stat().st_size / 1e6}
    if resume:
        agreement, times = trainer.lightning_module.agreement, []
        for _ in range(200):
            start = time.perf_counter()
            agreement.exchange(torch.zeros(()), 1)
            agreement.sync()
            times.append(time.perf_counter() - start)
        before = proc("io", "rchar")
        for _ in data.train_dataloader():
            pass
        found |= {"read": (proc("io", "rchar") - before) / 1e6, "agreement": statistics.median(times) * 1e3}
    Path(f"{folder}/found-{trainer.global_rank}.json").write_text(json.dumps(found))


def ranks(megabytes: int = 24) -> None:
    """Prints the table of processes."""
    with tempfile.TemporaryDirectory() as root:
        size = write_corpus(Path(root) / "corpus", megabytes)
        print(f"corpus: {size / 1e6:.1f} MB in 8 parquet files; {LANES} lanes\n")
        print(
            "| processes | num_readers | resident MB, each | checkpoint MB | seconds to resume | MB read, all | "
            "agreement ms |\n|---|---|---|---|---|---|---|"
        )
        for num_readers in (1, 4):
            for num_ranks in (1, 2, 4):
                folder = f"{root}/{num_ranks}-{num_readers}"
                launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_ranks}", __file__]
                given = [f"--corpus={root}/corpus", f"--folder={folder}", f"--num_readers={num_readers}"]
                for _ in range(2):
                    last_line([*launch, "worker", *given])
                runs = [json.loads(Path(f"{folder}/found-{rank}.json").read_text()) for rank in range(num_ranks)]
                print(
                    f"| {num_ranks} | {num_readers} | {spread(runs, 'resident')} | {runs[0]['checkpoint']:.2f} | "
                    f"{spread(runs, 'seconds')} | {sum(run['read'] for run in runs):.0f} | "
                    f"{spread(runs, 'agreement')} |",
                    flush=True,
                )


def write_corpus(folder: Path, megabytes: int) -> int:
    """Writes documents of some thousand letters in row groups of 50, and returns the size of the files."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(8):
        lengths = draw.integers(1000, 5000, megabytes * 1_000_000 // 8 // 3000)
        texts = [bytes(draw.integers(97, 123, length, np.uint8)).decode() for length in lengths]
        datasets.Dataset.from_dict({"text": texts}).to_parquet(folder / f"train-{number}.parquet", batch_size=50)
    return sum(file.stat().st_size for file in folder.iterdir())


def last_line(command: list[str]) -> Any:
    """Runs a command and returns the last line of its output, if it is JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: exit {done.returncode}\n{done.stderr[-3000:]}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def spread(runs: list[dict], name: str) -> str:
    """Returns the median, and the least and the most."""
    values = [run[name] for run in runs]
    digits = 0 if min(values) > 50 else 2
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    auto_cli({"position": position, "ranks": ranks, "at": at, "worker": worker}, as_positional=False)
