"""Gradient accumulation: time and memory of a token with 4 windows of 16 a step, beside one window of 64.

    python benchmarks/windows_per_step.py --rounds 7

The default job's model (bytes, LSTM 256) and optimizer, 16 lanes, two threads; every figure is of a process of its own,
and rounds alternate. Memory is the peak above what the process holds after its first step.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch.nn.utils import clip_grad_norm_

from lit_tbptt import LSTM, Place, RecurrentLM, Run, StepPerWindow, StepPerWindows, Truncation, Window

LANES, TOKENS = 16, 64 * 100
KINDS = {"one window of 64": (64, 1), "4 windows of 16": (16, 4), "a step per window of 16": (16, 1)}


class Clipping:
    """The optimizer of an update: AdamW, with clipping."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, fused=True)
        self.zero_grad = self.optimizer.zero_grad

    def backward(self, loss: torch.Tensor, more: bool = False) -> None:
        loss.backward()

    def scale_gradients(self, factor: float) -> None:
        if factor != 1:
            for weight in self.weights:
                weight.grad *= factor

    def step(self, factor: float = 1.0, closure: None = None) -> None:
        clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()


def status(key: str) -> float:
    """Returns a line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def one_round(kind: str) -> None:
    """Trains on some tokens, and prints tokens per second and the peak of memory."""
    torch.set_num_threads(2)
    torch.manual_seed(1)
    k1, windows_per_step = KINDS[kind]
    model = RecurrentLM(257, LSTM(256, input_size=64))
    run, optimizer = Run(model, Truncation(k1)), Clipping(model)
    update = StepPerWindow() if windows_per_step == 1 else StepPerWindows(windows_per_step)
    windows = list(Window(*torch.randint(256, (2, LANES, TOKENS))).pieces(k1))
    carry, start, before = None, 0.0, 0.0
    for number, window in enumerate(windows):
        if number == windows_per_step:
            start, before = time.perf_counter(), status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        place = Place(number, number % windows_per_step, (True,) * windows_per_step)
        carry = update(window, carry, run, optimizer, place).carry
    seconds = time.perf_counter() - start
    print(json.dumps([LANES * (TOKENS - k1 * windows_per_step) / seconds, status("VmHWM") - before]))


def compare(rounds: int = 7) -> None:
    """Prints a table."""
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, rows in found.items():
            command = [sys.executable, __file__, "one_round", kind]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    first = next(iter(found.values()))
    print("| | tokens/s | time, relative | peak memory, MiB |\n|---|---|---|---|")
    for kind, rows in found.items():
        speeds, memory = zip(*rows, strict=True)
        ratios = [one[0] / row[0] for one, row in zip(first, rows, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {kind} | {statistics.median(speeds):,.0f} | {spread} | {statistics.median(memory):.1f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "one_round":
        one_round(sys.argv[2])
    else:
        auto_cli(compare)
