"""Kills real runs at random moments, continues each, and compares its end with that of a run that was never stopped.

    python benchmarks/crash.py --kills 30 --terms 10

Prints a row a case: what was sent, the step resumed from, the steps the second process ran, and whether weights,
optimizer, carried state, random generators, position and logged curve are equal to the last bit.
"""

import argparse
import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lit_tbptt.checkpoint import read_checkpoint

STEPS = 160
RUN = Path("runs/default/version_0")
TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def command(text: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        str(TRAIN),
        "fit",
        f"--data.path={text}",
        "--data.num_lanes=6",
        "--data.windows_per_batch=4",
        "--model.core=LSTM",
        "--model.core.hidden_size=96",
        "--model.output_dropout=0.2",
        "--model.k1=12",
        "--model.k2=20",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=9",
        "--trainer.log_every_n_steps=7",
        "--trainer.accelerator=cpu",
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
    found = read_checkpoint(folder / RUN / "checkpoints" / "last.ckpt")
    for row in found["tbptt"]["log"]["rows"]:
        row.pop("train/tokens_per_second", None)
    with open(folder / RUN / "metrics.csv", newline="") as file:
        # What is not a function of the data: the clock, and the test at the run's end.
        rows = [{k: v for k, v in row.items() if v and k != "train/tokens_per_second"} for row in csv.DictReader(file)]
    rows = [row for row in rows if int(row["step"]) < STEPS]
    return [found["state_dict"], found["optimizer_states"], found["lr_schedulers"], found["tbptt"], rows]


def run(folder: Path, text: Path, *options: str) -> None:
    with open(folder / "log.txt", "a") as log:
        done = subprocess.run(command(text, *options), cwd=folder, stdout=log, stderr=log, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: exit {done.returncode}\n{(folder / 'log.txt').read_text()[-3000:]}")


def crash(folder: Path, text: Path, number: signal.Signals, wait: float) -> tuple[int, bool]:
    checkpoints = folder / RUN / "checkpoints"
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(command(text), cwd=folder, stdout=log, stderr=log)
    while not (checkpoints / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(number)
    status = process.wait(timeout=120)
    assert status == (-9 if number == signal.SIGKILL else 143), (
        f"exit {status}: {(folder / 'log.txt').read_text()[-2000:]}"
    )
    while_writing = any(checkpoints.glob("*.part")) or (checkpoints / "next.ckpt").exists()
    newest = max(read_step(path) for path in checkpoints.glob("*.ckpt"))
    return newest, while_writing


def read_step(path: Path) -> int:
    try:
        return read_checkpoint(path)["global_step"]
    except ValueError:
        return -1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        text = Path(root) / "text.txt"
        text.write_text("".join(f"{i} and {i * i % 97} make {(i + i * i) % 89}.\n" for i in range(1400)))
        whole = Path(root) / "whole"
        whole.mkdir()
        run(whole, text)
        expected = end_of(whole)
        log = (whole / RUN / "metrics.csv").stat().st_mtime
        begun = (whole / RUN / "config.yaml").stat().st_mtime
        print(f"undisturbed: {STEPS} steps in {log - begun:.1f} s\n")
        print(f"{'case':>4} {'signal':8} {'in a write':10} {'resumed from':>12} {'steps run':>9}  equal")
        failed = 0
        cases = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
        for case, number in enumerate(cases, 1):
            folder = Path(root) / str(case)
            folder.mkdir()
            step, writing = crash(folder, text, number, draw.uniform(0, 0.8 * (log - begun)))
            run(folder, text, "--ckpt_path=last")
            same = equal(end_of(folder), expected)
            resumed = int((folder / RUN).glob("config_from_step_*.yaml").__next__().stem.rsplit("_", 1)[1])
            assert resumed == step > 0, (resumed, step)
            failed += not same
            print(
                f"{case:4} {number.name:8} {'yes' if writing else 'no':10} {resumed:12} {STEPS - resumed:9}  "
                f"{'yes' if same else 'NO'}",
                flush=True,
            )
        print(f"\n{len(cases) - failed} of {len(cases)} equal to the last bit")
        sys.exit(failed > 0)


if __name__ == "__main__":
    main()
