"""Hessian-free optimization beside Adam and clipped SGD: long-range problems for a plain tanh RNN, as a table.

    python benchmarks/hessian_free.py FOLDER --jobs 2

Full backpropagation through time on the adding problem and the temporal order problem (Hochreiter & Schmidhuber 1997,
in the form of Martens & Sutskever 2011), new sequences for every step. Every run has the same budget: the unit is the
CPU time of one gradient of 200 sequences; a linearization, a product and a loss cost what they are measured to cost,
once, before the first run. All optimizers start from the same sparse initialization.

FOLDER gets a JSON file for each finished run, which later calls skip, and a checkpoint of each unfinished one, which
they continue.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, mse_loss

from lit_tbptt import HessianFree
from lit_tbptt.tbptt.gauss_newton import Linearization

UNITS, SEQUENCES, TEST_SEQUENCES, CONNECTIONS, RADIUS = 100, 200, 2000, 15, 1.1
BUDGET, EVALUATE_EVERY = 5000, 100
SEEDS = {50: (1, 2, 3), 100: (1,)}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "HessianFree": lambda parameters: HessianFree(parameters, damping=0.1, max_iterations=50),
    "HessianFree, structural": lambda parameters: HessianFree(
        parameters, damping=0.1, max_iterations=50, structural_damping=0.003
    ),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "SGD, clipped": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
}
CLIP_NORM = 1.0


# The problems: inputs [sequence, time, feature], and targets of the last time step.


def adding(length: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1], two of them marked, one in each half; the target is the sum of the two."""
    numbers = torch.rand(count, length, generator=generator)
    marks, half = torch.zeros(count, length), length // 2
    for start, end in ((0, half), (half, length)):
        places = torch.randint(start, end, (count, 1), generator=generator)
        marks.scatter_(1, places, 1.0)
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)


def temporal_order(length: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four distractors, and A or B at two places far apart; the target is which of the four pairs it was."""
    symbols = torch.randint(0, 4, (count, length), generator=generator)
    pairs = torch.randint(0, 2, (count, 2), generator=generator)
    for which, (start, end) in enumerate(((length // 10, 2 * length // 10), (5 * length // 10, 6 * length // 10))):
        places = torch.randint(start, max(end, start + 1), (count, 1), generator=generator)
        symbols.scatter_(1, places, 4 + pairs[:, which, None])
    return nn.functional.one_hot(symbols, 6).float(), 2 * pairs[:, 0] + pairs[:, 1]


def wrong_sums(outputs: Tensor, targets: Tensor) -> float:
    return ((outputs - targets).abs() > 0.04).float().mean().item()


def wrong_pairs(outputs: Tensor, targets: Tensor) -> float:
    return (outputs.argmax(1) != targets).float().mean().item()


# By name: the data, the loss, the share of wrong sequences, the numbers of inputs and outputs, and the scale of the
# weights from the inputs. Noise of the distractors fills a chaotic state unless it enters by small weights.
PROBLEMS: dict[str, tuple[Callable, Callable, Callable, int, int, float]] = {
    "adding": (adding, mse_loss, wrong_sums, 2, 1, 1.0),
    "temporal order": (temporal_order, cross_entropy, wrong_pairs, 6, 4, 0.1),
}


class TanhRNN(nn.Module):
    """h_t = tanh(U x_t + W h_{t-1} + b) and a linear readout of the last one.

    Written out, because a product through `nn.RNN` on a CPU takes about four times as long.
    """

    def __init__(self, num_inputs: int, num_outputs: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.inputs = nn.Parameter(scale * torch.randn(UNITS, num_inputs, generator=generator))
        self.recurrent = nn.Parameter(sparse(UNITS, UNITS, generator))
        self.bias = nn.Parameter(torch.zeros(UNITS))
        self.readout = nn.Parameter(sparse(num_outputs, UNITS, generator) / CONNECTIONS**0.5)
        self.readout_bias = nn.Parameter(torch.zeros(num_outputs))
        with torch.no_grad():
            self.recurrent *= RADIUS / torch.linalg.eigvals(self.recurrent).abs().max()

    def forward(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the outputs of the last time step, and the states of all."""
        hidden, states = inputs.new_zeros(len(inputs), UNITS), []
        recurrent = self.recurrent.t()
        for entering in linear(inputs, self.inputs, self.bias).unbind(1):
            hidden = torch.tanh(torch.addmm(entering, hidden, recurrent))
            states.append(hidden)
        return linear(hidden, self.readout, self.readout_bias), states


def sparse(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Martens' sparse initialization: each row has a few standard normal weights."""
    weights = torch.zeros(rows, columns)
    for row in weights:
        row[torch.randperm(columns, generator=generator)[:CONNECTIONS]] = torch.randn(CONNECTIONS, generator=generator)
    return weights


class Training:
    """One run: what is counted, and what a checkpoint holds."""

    def __init__(self, problem: str, length: int, optimizer: str, seed: int, costs: dict[str, float]) -> None:
        self.draw, self.loss, self.wrong, *sizes = PROBLEMS[problem]
        self.length, self.costs = length, costs
        self.generator = torch.Generator().manual_seed(seed)
        self.model = TanhRNN(*sizes, self.generator)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.test = self.draw(length, TEST_SEQUENCES, torch.Generator().manual_seed(1_000_000 + seed))
        self.progress: dict[str, Any] = {"spent": 0.0, "steps": 0, "curve": []}
        self.batch = self.draw(length, SEQUENCES, torch.Generator().manual_seed(seed))

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.current_loss()
        loss.backward()
        return loss

    def current_loss(self) -> Tensor:
        return self.loss(self.model(self.batch[0])[0], self.batch[1])

    def linearize(self) -> Linearization:
        def loss(outputs: Tensor) -> Tensor:
            return SEQUENCES * self.loss(outputs, self.batch[1])

        outputs, states = self.model(self.batch[0])
        hidden = states if self.optimizer.param_groups[0]["structural_damping"] else None
        return Linearization(outputs, loss, self.model.parameters(), SEQUENCES, hidden)

    def step(self) -> None:
        self.batch = self.draw(self.length, SEQUENCES, self.generator)
        if isinstance(self.optimizer, HessianFree):
            before = self.counts()
            self.optimizer.linearize, self.optimizer.loss_only = self.linearize, self.current_loss
            self.optimizer.step(self.closure)
            spent = sum(self.costs[name] * (count - before[name]) for name, count in self.counts().items())
        else:
            self.closure()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.optimizer.step()
            spent = 1.0
        self.progress["spent"] += spent
        self.progress["steps"] += 1

    def counts(self) -> dict[str, int]:
        return {name: self.optimizer.state.get(name, 0) for name in self.costs}

    @torch.no_grad()
    def evaluate(self) -> None:
        outputs, _ = self.model(self.test[0])
        loss, wrong = self.loss(outputs, self.test[1]).item(), self.wrong(outputs, self.test[1])
        self.progress["curve"].append([round(self.progress["spent"], 1), self.progress["steps"], loss, wrong])

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": self.progress,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.progress = state["progress"]


def measure(length: int, optimizer: str) -> dict[str, float]:
    """Returns the CPU time of what HessianFree counts, over that of a gradient."""
    training = Training("adding", length, optimizer, 0, {})
    linearized, structural = training.linearize(), training.optimizer.param_groups[0]["structural_damping"]
    vector = [torch.randn_like(parameter) for parameter in training.model.parameters()]
    calls: dict[str, Callable[[], Any]] = {
        "num_gradients": training.closure,
        "num_linearizations": training.linearize,
        "num_products": lambda: linearized.product(vector, structural),
        "num_losses": torch.no_grad()(training.current_loss),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(20):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {name: round(median / medians["num_gradients"], 3) for name, median in medians.items()}


def run(folder: Path, problem: str, length: int, optimizer: str, seed: int, budget: float) -> None:
    """Trains to the end of the budget, or on from a checkpoint, and writes the result."""
    torch.set_num_threads(1)
    result = path_of(folder, problem, length, optimizer, seed)
    checkpoint = result.with_suffix(".pt")
    costs = json.loads((folder / "costs.json").read_text()).get(f"{optimizer}, length {length}", {})
    training = Training(problem, length, optimizer, seed, costs)
    if checkpoint.exists():
        training.load(torch.load(checkpoint, weights_only=True))
    else:
        training.evaluate()
    progress = training.progress
    while progress["spent"] < budget:
        training.step()
        if progress["spent"] >= min(progress["curve"][-1][0] + EVALUATE_EVERY, budget):
            training.evaluate()
            write(checkpoint, lambda path: torch.save(training.state(), path))
            if not math.isfinite(progress["curve"][-1][2]):
                break
    write(result, lambda path: path.write_text(json.dumps(progress | {"counts": training.counts(), "budget": budget})))
    checkpoint.unlink(missing_ok=True)


def write(path: Path, save: Callable[[Path], Any]) -> None:
    beside = path.with_name(path.name + ".part")
    save(beside)
    os.replace(beside, path)


def path_of(folder: Path, problem: str, length: int, optimizer: str, seed: int) -> Path:
    return folder / f"{problem}_{length}_{optimizer}_{seed}.json".replace(" ", "_").replace(",", "")


def table(folder: Path) -> None:
    print(
        "| problem | length | optimizer | seeds | steps | wrong at the end | loss at the end | first below 1 % wrong |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for problem in PROBLEMS:
        for length, seeds in SEEDS.items():
            for optimizer in OPTIMIZERS:
                paths = [path_of(folder, problem, length, optimizer, seed) for seed in seeds]
                results = [json.loads(path.read_text()) for path in paths if path.exists()]
                ends = [result["curve"][-1] for result in results]
                solved = [next((f"{at[0]:.0f}" for at in r["curve"] if at[3] < 0.01), "never") for r in results]
                cells = [
                    ", ".join(f"{end[1]}" for end in ends),
                    ", ".join(f"{100 * end[3]:.1f} %" for end in ends),
                    ", ".join(f"{end[2]:.2g}" for end in ends),
                    ", ".join(solved),
                ]
                print(f"| {problem} | {length} | {optimizer} | {len(results)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget", type=float, default=BUDGET, help="gradients of 200 sequences a run")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    costs = folder / "costs.json"
    if not costs.exists():
        measured = {
            f"{optimizer}, length {length}": measure(length, optimizer)
            for optimizer in OPTIMIZERS
            if optimizer.startswith("HessianFree")
            for length in SEEDS
        }
        write(costs, lambda path: path.write_text(json.dumps(measured, indent=1)))
    print(costs.read_text())
    runs = [
        (problem, length, optimizer, seed)
        for length, seeds in SEEDS.items()
        for seed in seeds
        for problem in PROBLEMS
        for optimizer in OPTIMIZERS
        if not path_of(folder, problem, length, optimizer, seed).exists()
    ]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for future in [pool.submit(run, folder, *each, arguments.budget) for each in runs]:
            future.result()
    table(folder)


if __name__ == "__main__":
    main()
