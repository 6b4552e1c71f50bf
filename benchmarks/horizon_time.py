"""What a longer horizon costs in time: per token, against k2 = k1, in the default job's model with its optimizer.

    python benchmarks/horizon_time.py

Every round runs each setting once, over the same tokens; a figure is the median of the rounds' ratios to k2 = k1, and
the spread is between quartiles. The rule is at most 1.1 x k2 / k1. The second table is of short windows beside
k1 = k2 = 64, the third of `recompute_every` at k1 = k2 = 256. About five minutes on two cores.

    python benchmarks/horizon_time.py --tables '[short]'     one of the tables: long, short, recompute
"""

import statistics
import time
from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from lit_tbptt import LSTM, RecurrentLM, Truncation, Window

RATIOS = {8: (1.5, 2, 4, 8, 32), 64: (1.5, 2, 4, 8), 256: (1.5, 2, 4)}
SHORT = ((64, 64), (1, 1), (1, 15), (8, 8), (8, 12))


class Training:
    """A training under one truncation."""

    def __init__(self, k1: int, k2: int, recompute_every: int | None = None) -> None:
        torch.manual_seed(1)
        self.task = RecurrentLM(257, LSTM(256, input_size=64))
        self.optimizer = torch.optim.AdamW(self.task.parameters(), fused=True)
        self.truncation = Truncation(k1, k2, recompute_every)
        self.carry = None

    def seconds(self, tokens: Window) -> float:
        windows = list(tokens.pieces(self.truncation.k1))
        started = time.perf_counter()
        for window in windows:
            loss, num_targets, carry, _ = self.truncation(self.task, window, self.carry)
            self.carry = carry.detach()
            self.optimizer.zero_grad()
            (loss / num_targets).backward()
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
            self.optimizer.step()
        return time.perf_counter() - started


def ratios(trainings: dict[Any, Training], num_rounds: int, num_tokens: int, num_lanes: int) -> dict[Any, list[float]]:
    """Returns lower quartile, median and upper quartile of each training's time over that of the first one."""
    first = next(iter(trainings))
    found: dict[Any, list[float]] = {name: [] for name in trainings if name != first}
    for number in range(num_rounds + 1):
        tokens = Window(*torch.randint(256, (2, num_lanes, num_tokens)))
        seconds = {name: training.seconds(tokens) for name, training in trainings.items()}
        for name in found if number else ():  # the first round warms up and fills the contexts
            found[name].append(seconds[name] / seconds[first])
    return {name: statistics.quantiles(values, n=4) for name, values in found.items()}


def long(*sizes: int) -> None:
    """Prints the time of horizons beyond the window."""
    print("| k1 | k2 | time per token over that of k2 = k1 | quartiles | over k2 / k1 |\n|---|---|---|---|---|")
    for k1, longer in RATIOS.items():
        trainings = {int(k1 * ratio): Training(k1, int(k1 * ratio)) for ratio in (1, *longer)}
        for k2, (low, middle, high) in ratios(trainings, *sizes).items():
            print(f"| {k1} | {k2} | {middle:.2f} | {low:.2f} to {high:.2f} | {middle * k1 / k2:.2f} |", flush=True)


def short(*sizes: int) -> None:
    """Prints the time of short windows."""
    print("| k1 | k2 | time per token over that of k1 = k2 = 64 | quartiles |\n|---|---|---|---|")
    for (k1, k2), (low, middle, high) in ratios({pair: Training(*pair) for pair in SHORT}, *sizes).items():
        print(f"| {k1} | {k2} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


def recompute(*sizes: int) -> None:
    """Prints the time of computing again what was not kept."""
    print("| recompute_every | time over that of keeping all | quartiles |\n|---|---|---|")
    trainings = {every: Training(256, 256, every or None) for every in (0, 16, 64)}
    for every, (low, middle, high) in ratios(trainings, *sizes).items():
        print(f"| {every} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


def main(
    num_rounds: int = 15,
    num_tokens: int = 512,
    num_lanes: int = 16,
    tables: list[Literal["long", "short", "recompute"]] = ["long", "short", "recompute"],  # noqa: B006 - as --help shows
) -> None:
    """Measures every pair and prints the tables."""
    torch.set_flush_denormal(True)  # as the command line does
    for table in tables:
        globals()[table](num_rounds, num_tokens, num_lanes)


if __name__ == "__main__":
    auto_cli(main)
