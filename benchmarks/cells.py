"""How fast cells and stacks are, and whether compiling a cell's loop would be worth it.

    python benchmarks/cells.py cores
    python benchmarks/cells.py compiled

`cores`: milliseconds of forward and backward of a window, beside LSTM of the same size. `compiled`: the loop of a
LayerNormLSTM as it is, with its `step` compiled, and compiled as a whole, with the seconds that compiling takes. The
figures are medians over alternating rounds; a ratio is the median of the ratios within a round.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from jsonargparse import auto_cli

from lit_tbptt import LSTM, SRU, CoupledLSTM, LayerNormLSTM, RecurrentCore, Stack


def window(core: RecurrentCore, num_lanes: int, num_time_steps: int) -> Callable[[], None]:
    """Returns a function that runs a window forward and backward."""
    inputs = torch.randn(num_time_steps, num_lanes, core.input_size).transpose(0, 1).requires_grad_()
    state = core.initial_state(num_lanes)

    def run() -> None:
        outputs, _ = core(inputs, state)
        outputs.sum().backward()

    return run


def compare(runs: dict[str, Callable[[], None]], num_rounds: int) -> None:
    """Times the runs in turn and prints a table; the ratio is to the first."""
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            milliseconds[name].append(1000 * (time.perf_counter() - start))
    first = next(iter(milliseconds.values()))
    print("| | ms | ratio |\n|---|---|---|")
    for name, times in milliseconds.items():
        ratio = median(mine / other for mine, other in zip(times, first, strict=True))
        print(f"| {name} | {median(times):.1f} | {ratio:.2f} |")


def cores(size: int = 128, num_lanes: int = 16, num_time_steps: int = 64, num_rounds: int = 15) -> None:
    """Times the cores.

    Args:
        size: Units, and input features.
        num_lanes: Lanes.
        num_time_steps: Time steps of a window.
        num_rounds: Rounds, of one window each.
    """
    made = {
        "LSTM": LSTM(size),
        "LayerNormLSTM": LayerNormLSTM(size),
        "CoupledLSTM": CoupledLSTM(size),
        "SRU": SRU(size),
        "LSTM of 2 layers": LSTM(size, 2),
        "Stack of 2 LSTMs": Stack([LSTM(size), LSTM(size)]),
        "Stack of 2 LSTMs, dense": Stack([LSTM(size), LSTM(size, input_size=2 * size)], "dense"),
    }
    compare({name: window(core, num_lanes, num_time_steps) for name, core in made.items()}, num_rounds)


def compiled(size: int = 128, num_lanes: int = 16, num_time_steps: int = 16, num_rounds: int = 15) -> None:
    """Times a LayerNormLSTM compiled in two ways.

    Args:
        size: Units, and input features.
        num_lanes: Lanes.
        num_time_steps: Time steps of a window. Compiling the whole loop takes seconds for each.
        num_rounds: Rounds, of one window each.
    """
    plain, by_step, whole = (LayerNormLSTM(size) for _ in range(3))
    by_step.step = torch.compile(by_step.step)  # type: ignore[method-assign]
    whole.compile()
    runs = {}
    for name, core in (("as it is", plain), ("step compiled", by_step), ("loop compiled", whole)):
        runs[name] = window(core, num_lanes, num_time_steps)
        start = time.perf_counter()
        runs[name]()
        print(f"{name}: first window after {time.perf_counter() - start:.1f} s")
    compare(runs, num_rounds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    auto_cli([cores, compiled])
