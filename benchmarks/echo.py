"""What a horizon learns and what a carried state is worth, on the echo task: medians of three seeds, as a table.

    python benchmarks/echo.py

The figures "elsewhere" are of another implementation, which kept the activations of old weights in the overlap of
windows where this package runs it again with today's; the optimum is exact (see examples/echo.py). It takes about a
quarter of an hour on two cores.
"""

import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import echo

NEITHER, LAG_3, BOTH = 0.661563, 0.519167, 0.454454
# k1, k2, whether the state is carried; the figure elsewhere; the optimum for the lags that the horizon can teach
RUNS = [
    (1, 1, True, "0.661", NEITHER),
    (1, 3, True, "0.663", NEITHER),
    (1, 4, True, "0.518", LAG_3),
    (1, 5, True, "0.461", BOTH),
    (4, 4, True, "0.510", BOTH),
    (5, 5, True, "0.456", BOTH),
    (5, 10, True, "0.457", BOTH),
    (20, 20, True, "0.457", BOTH),
    (5, 5, False, "", 0.60460),
]
SEEDS = (1, 2, 3)


def run(task: tuple[int, int, bool, int]) -> float:
    torch.set_num_threads(1)
    k1, k2, carry_state, seed = task
    return echo.main(k1, k2, carry_state, seed=seed)


def main() -> None:
    tasks = [(k1, k2, carried, seed) for k1, k2, carried, _, _ in RUNS for seed in SEEDS]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        found = dict(zip(tasks, pool.map(run, tasks), strict=True))
    print("| k1 | k2 | state | median nats | of three seeds | elsewhere | optimum |")
    print("|---|---|---|---|---|---|---|")
    for k1, k2, carried, elsewhere, optimum in RUNS:
        nats = sorted(found[k1, k2, carried, seed] for seed in SEEDS)
        state = "carried" if carried else "reset"
        seen = f"{nats[0]:.4f} to {nats[-1]:.4f}"
        print(f"| {k1} | {k2} | {state} | {statistics.median(nats):.4f} | {seen} | {elsewhere} | {optimum:.4f} |")


if __name__ == "__main__":
    main()
