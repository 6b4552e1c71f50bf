"""What a longer horizon costs in time: per token, against k2 = k1, in the default job's model with its optimizer.

    python benchmarks/horizon_time.py

Every round runs each setting once, over the same tokens; a figure is the median of the rounds' ratios to k2 = k1, and
the spread is between quartiles. The rule is at most 1.1 x k2 / k1. The second table is of `recompute_every` at
k1 = k2 = 256. About five minutes on two cores.
"""

import statistics
import time
from collections.abc import Iterable

import torch
from jsonargparse import auto_cli

from lit_tbptt import LSTM, RecurrentLM, Truncation, Window

RATIOS = {8: (1.5, 2, 4, 8, 32), 64: (1.5, 2, 4, 8), 256: (1.5, 2, 4)}


class Training:
    """A training under one truncation."""

    def __init__(self, k1: int, k2: int, recompute_every: int | None = None) -> None:
        torch.manual_seed(1)
        self.task = RecurrentLM(257, LSTM(256, input_size=64))
        self.optimizer = torch.optim.AdamW(self.task.parameters(), fused=True)
        self.truncation = Truncation(k1, k2, recompute_every)
        self.carry = None

    def seconds(self, windows: Iterable[Window]) -> float:
        started = time.perf_counter()
        for window in windows:
            loss, num_targets, carry, _ = self.truncation(self.task, window, self.carry)
            self.carry = carry.detach()
            self.optimizer.zero_grad()
            (loss / num_targets).backward()
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
            self.optimizer.step()
        return time.perf_counter() - started


def ratios(trainings: dict[int, Training], k1: int, num_rounds: int, num_tokens: int, num_lanes: int) -> dict:
    """Returns lower quartile, median and upper quartile of each training's time over that of the first one."""
    first = next(iter(trainings))
    found: dict[int, list[float]] = {name: [] for name in trainings if name != first}
    for number in range(num_rounds + 1):
        windows = list(Window(*torch.randint(256, (2, num_lanes, num_tokens))).pieces(k1))
        seconds = {name: training.seconds(windows) for name, training in trainings.items()}
        for name in found if number else ():  # the first round warms up and fills the contexts
            found[name].append(seconds[name] / seconds[first])
    return {name: statistics.quantiles(values, n=4) for name, values in found.items()}


def main(num_rounds: int = 15, num_tokens: int = 512, num_lanes: int = 16) -> None:
    """Measures every pair and prints the tables."""
    torch.set_flush_denormal(True)  # as the command line does
    sizes = (num_rounds, num_tokens, num_lanes)
    print("| k1 | k2 | time per token over that of k2 = k1 | quartiles | over k2 / k1 |\n|---|---|---|---|---|")
    for k1, longer in RATIOS.items():
        trainings = {int(k1 * ratio): Training(k1, int(k1 * ratio)) for ratio in (1, *longer)}
        for k2, (low, middle, high) in ratios(trainings, k1, *sizes).items():
            print(f"| {k1} | {k2} | {middle:.2f} | {low:.2f} to {high:.2f} | {middle * k1 / k2:.2f} |", flush=True)
    print("\n| recompute_every | time over that of keeping all | quartiles |\n|---|---|---|")
    trainings = {every: Training(256, 256, every or None) for every in (0, 16, 64)}
    for every, (low, middle, high) in ratios(trainings, 256, *sizes).items():
        print(f"| {every} | {middle:.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    auto_cli(main)
