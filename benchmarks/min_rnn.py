"""MinGRU's recurrence in its two forms, in logarithms and as torch's scan, beside LSTM: forward and backward, a table.

    python benchmarks/min_rnn.py
    python benchmarks/min_rnn.py --lanes 1 8 --features 64 --lengths 64 256

CPU time of one thread, so that other processes disturb little. The forms of a size take turns, in random order. A ratio
is the median over rounds of the time divided by that of MinGRU as it is (`default`) in the same round.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from lit_tbptt import LSTM, MinGRU, MinLSTM, RecurrentCore
from lit_tbptt.cores import min_rnn
from lit_tbptt.cores.scan import scan

_SLOWEST = 4e6
"""Forms that take a hundred times as long are left out if there are more elements than this."""


def logarithms(rates: Tensor, terms: Tensor, start: Tensor) -> Tensor:
    """The published form, over all time steps at once, with the start apart, so that it may be negative."""
    kept = (-rates).log1p().cumsum(0)
    return (kept + (terms.log() - kept).logcumsumexp(0)).exp() + kept.exp() * start


def associative(rates: Tensor, terms: Tensor, start: Tensor) -> Tensor:
    """The scan of torch, uncompiled."""
    terms = torch.cat([(terms[0] + (1 - rates[0]) * start)[None], terms[1:]])
    return associative_scan(
        lambda first, second: (first[0] * second[0], first[1] * second[0] + second[1]),
        (1 - rates, terms),
        0,
        combine_mode="generic",
    )[1]


SCANS: dict[str, Callable[..., Tensor]] = {
    "default": scan,
    "loop": partial(scan, num_chunks=1),
    "logarithms": logarithms,
    "associative_scan": associative,
}


def seconds(core: RecurrentCore, inputs: Tensor, form: Callable[..., Tensor] | None) -> float:
    """Returns the CPU time of a forward and a backward pass."""
    start = time.thread_time()
    with patch.object(min_rnn, "scan", form or scan):
        outputs, _ = core(inputs, core.initial_state(inputs.shape[0]))
        outputs.sum().backward()
    return time.thread_time() - start


def measure(lanes: int, features: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every round by form."""
    gru, works = MinGRU(features), dict[str, Callable[[], float]]()
    inputs = torch.randn(length, lanes, features).transpose(0, 1).requires_grad_()
    for name, form in SCANS.items():
        if name in ("default", "loop") or lanes * features * length <= _SLOWEST:
            works[name] = partial(seconds, gru, inputs, form)
    chunks = partial(scan, num_chunks=max(1, round(length**0.5)))
    works["chunks"] = partial(seconds, gru, inputs, chunks)
    works["MinLSTM"] = partial(seconds, MinLSTM(features), inputs, None)
    works["LSTM"] = partial(seconds, LSTM(features), inputs, None)
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name in random.sample(list(works), len(works)):  # what runs before matters by up to a tenth
            taken[name].append(works[name]())
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["loop", "chunks", "logarithms", "associative_scan", "MinLSTM", "LSTM"]
    print("| lanes | features | T | default, ms | " + " | ".join(f"{name} / default" for name in columns) + " |")
    print("|" + "---|" * (4 + len(columns)))
    for lanes in given.lanes:
        for features in given.features:
            for length in given.lengths:
                taken = measure(lanes, features, length, given.rounds)
                cells = [str(lanes), str(features), str(length), f"{1e3 * statistics.median(taken['default']):.2f}"]
                for name in columns:
                    ratios = [t / d for t, d in zip(taken.get(name, []), taken["default"], strict=False)]
                    cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
