"""Ends real runs at random moments, continues each, and compares its end with that of a run that was never stopped.

    python benchmarks/crash.py --rounds 2

A case is a number of processes, a kind of lanes or update, and what is sent to whom. Prints a row a case: the exit
status of each process, the seconds until the last of them had ended, the step resumed from, the steps the second run
made, and whether weights, optimizer, carried state of every lane, random generators of every process, position and
logged curve are equal to the last bit. Linux only.
"""

import argparse
import csv
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lit_tbptt import RunFolder
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.files.schema import run_state

STEPS = 160
RUN = Path("runs/default/version_0")
TRAIN = Path(__file__).resolve().parent.parent / "train.py"
KINDS = {
    "strided": [],
    "streamed": ["--data.streaming=true", "--data.num_readers=2"],
    "windows_per_step": ["--model.windows_per_step=2"],
    "window_lengths": [
        "--data.window_lengths=NormalLengths",
        "--data.window_lengths.mean=9",
        "--data.window_lengths.deviation=2",
        "--data.document_reset=false",
    ],
    "random truncation": ["--model.update=RandomTruncation", "--model.update.probability=0.4", "--model.k2=null"],
}
# What is sent, to which processes, by the number of processes.
HITS = {
    1: [("SIGKILL", [0]), ("SIGTERM", [0])],
    2: [
        ("SIGKILL", [0, 1]),
        ("SIGKILL", [1]),
        ("SIGKILL", [0]),
        ("SIGTERM", [0]),
        ("SIGTERM", [1]),
        ("SIGTERM", [0, 1]),
    ],
}
# Longer than any process may take to end.
PATIENCE = 120


def command(corpus: Path, kind: str, num_ranks: int, *options: str) -> list[str]:
    return [
        sys.executable,
        str(TRAIN),
        "fit",
        f"--data.path={corpus}",
        "--data.num_lanes=6",
        "--data.windows_per_batch=4",
        "--data.document_reset=true",
        "--model.core=LSTM",
        "--model.core.hidden_size=96",
        "--model.output_dropout=0.2",
        "--model.k1=12",
        "--model.k2=20",
        *KINDS[kind],
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=9",
        "--trainer.log_every_n_steps=7",
        "--trainer.accelerator=cpu",
        f"--trainer.devices={num_ranks}",
        *(["--trainer.strategy=ddp"] if num_ranks > 1 else []),
        "--checkpoint.every_n_steps=1",
        *options,
    ]


def leaves(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def equal(a, b) -> bool:
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def end_of(folder: Path) -> list:
    found = read_checkpoint(RunFolder(folder / RUN).last)
    saved = {key: value for key, value in run_state(found).items() if key != "settings"}
    for row in [*saved["log"]["rows"], saved["metrics"]]:
        row.pop("train/tokens_per_second", None)
    with open(RunFolder(folder / RUN).metrics, newline="") as file:
        # What is not a function of the data: the clock, and the test at the run's end.
        rows = [{k: v for k, v in row.items() if v and k != "train/tokens_per_second"} for row in csv.DictReader(file)]
    rows = [row for row in rows if int(row["step"]) < STEPS]
    return [found["state_dict"], found["optimizer_states"], found["lr_schedulers"], saved, rows]


def run(folder: Path, command: list[str]) -> None:
    with open(folder / "log.txt", "a") as log:
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: exit {done.returncode}\n{(folder / 'log.txt').read_text()[-3000:]}")


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def crash(folder: Path, command: list[str], name: str, whom: list[int], wait: float) -> tuple[list[str], float]:
    """Starts a run, sends a signal to some of its processes, and returns how all of them ended and how soon."""
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    while not (folder / RUN / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    until = time.monotonic() + wait
    # Not later than near the end, however fast this run is beside the one that was timed.
    while time.monotonic() < until and logged_step(folder) < 0.8 * STEPS:
        time.sleep(0.005)
    pids = [process.pid, *children(process.pid)]
    for rank in whom:
        os.kill(pids[rank], signal.Signals[name])
    sent = time.monotonic()
    ended = [str(process.wait(PATIENCE)), *(ended_as(pid, sent + PATIENCE) for pid in pids[1:])]
    return ended, time.monotonic() - sent


def logged_step(folder: Path) -> int:
    file = folder / RUN / "metrics.csv"
    step = file.read_text().strip().rsplit("\n", 1)[-1].split(",")[0] if file.exists() else ""
    return int(step) if step.isdigit() else 0


def ended_as(pid: int, until: float) -> str:
    """Waits for a process whose parent has ended, which makes it ours; its parent may know its status alone."""
    while True:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return "?"
        if found:
            return str(os.waitstatus_to_exitcode(status))
        if time.monotonic() > until:
            raise SystemExit(f"process {pid} has not ended")
        time.sleep(0.01)


def read_step(path: Path) -> int:
    try:
        return read_checkpoint(path)["global_step"]
    except ValueError:
        return -1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2, help="moments for each case")
    parser.add_argument("--num_ranks", type=int, nargs="+", default=list(HITS), help="numbers of processes")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="of lanes or updates")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: processes whose parent is killed become ours
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_corpus(root / "corpus")
        expected = {}
        for num_ranks in options.num_ranks:
            for kind in options.kinds:
                whole = root / f"{kind}-{num_ranks}"
                whole.mkdir()
                run(whole, command(root / "corpus", kind, num_ranks))
                log = (whole / RUN / "metrics.csv").stat().st_mtime
                seconds = log - (whole / RUN / "config.yaml").stat().st_mtime
                expected[num_ranks, kind] = end_of(whole), seconds
                print(f"undisturbed, {num_ranks} processes, {kind}: {STEPS} steps in {seconds:.1f} s", flush=True)
        print(
            f"\n{'case':>4} {'ranks':>5} {'kind':17} {'sent':8} {'to':5} {'exit':9} {'ended in':>8} {'in a write':10} "
            f"{'resumed from':>12} {'steps run':>9}  equal"
        )
        cases = [
            (num_ranks, kind, *hit)
            for _ in range(options.rounds)
            for num_ranks in options.num_ranks
            for kind in options.kinds
            for hit in HITS[num_ranks]
        ]
        failed = 0
        for case, (num_ranks, kind, sent, whom) in enumerate(cases, 1):
            folder = root / str(case)
            folder.mkdir()
            end, seconds = expected[num_ranks, kind]
            start = command(root / "corpus", kind, num_ranks)
            ended, took = crash(folder, start, sent, whom, draw.uniform(0, 0.8 * seconds))
            allowed = {"143", "?"} if sent == "SIGTERM" else {"-9", "1", "?"}
            assert set(ended) <= allowed, f"exit {ended}: {(folder / 'log.txt').read_text()[-2000:]}"
            checkpoints = folder / RUN / "checkpoints"
            writing = any(checkpoints.glob("*.part")) or (checkpoints / "next.ckpt").exists()
            step = max(read_step(path) for path in checkpoints.glob("*.ckpt"))
            run(folder, [*start, "--ckpt_path=last"])
            same = equal(end_of(folder), end)
            resumed = int((folder / RUN).glob("config_from_step_*.yaml").__next__().stem.rsplit("_", 1)[1])
            assert resumed == step > 0, (resumed, step)
            failed += not same
            print(
                f"{case:4} {num_ranks:5} {kind:17} {sent:8} {'all' if len(whom) == num_ranks else whom[0]!s:5} "
                f"{' '.join(ended):9} {took:6.1f} s {'yes' if writing else 'no':10} {resumed:12} {STEPS - resumed:9}  "
                f"{'yes' if same else 'NO'}",
                flush=True,
            )
        print(f"\n{len(cases) - failed} of {len(cases)} equal to the last bit")
        sys.exit(failed > 0)


def write_corpus(folder: Path) -> None:
    folder.mkdir()
    for shard in range(6):
        lines = [f"{i} and {i * i % 97} make {(i + i * i) % 89}.\n" for i in range(shard, 1400, 6)]
        rows = [json.dumps({"text": "".join(lines[i : i + 1 + i % 5])}) for i in range(0, len(lines), 5)]
        name = "valid" if shard == 5 else f"train-{shard}"
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
