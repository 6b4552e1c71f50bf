"""Sequences in lanes beside what else there is: padded batches of similar lengths, and torch's DataLoader.

    python benchmarks/sequences.py packing      useful targets per second, padding, peak memory
    python benchmarks/sequences.py loading      bytes per second, and the share of a training step

packing: sequences of lengths drawn from a heavy tail (log-normal, median 150, at most 4,000), 16 features, an LSTM of
256 units with a linear output. Lanes: 64 of them, windows of 128 time steps (k1 = k2). Padded: batches of 64 sequences
of similar length (sorted in blocks of 16 batches, the batches shuffled), each backpropagated through whole, one step a
batch. Each round is a process of its own, so that its peak memory can be read; rounds alternate.

loading: dictionaries of four float32 arrays of four features each; 64 lanes, windows of 128 time steps. The DataLoader
has two workers and a dataset whose items are the same windows, stacked by its default collation.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_tbptt import SequenceLanes, Task, Truncation, Window

NUM_LANES, K1, FEATURES, UNITS = 64, 128, 16, 256


def lengths_of(number: int) -> Tensor:
    """Returns lengths from a heavy tail."""
    generator = torch.Generator().manual_seed(1)
    return (150 * torch.randn(number, generator=generator).exp()).clamp(5, 4000).long()


class Regression(Task, nn.Module):
    """An LSTM that predicts one number per time step."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 1)

    def initial_state(self, num_lanes: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(num_lanes, UNITS), torch.zeros(num_lanes, UNITS)

    def window_loss(self, window: Window, state: tuple[Tensor, Tensor]) -> tuple:
        outputs, state = self.core(window.inputs, tuple(part[None].contiguous() for part in state))
        mask = window.mask_or_ones()
        errors = (self.head(outputs)[..., 0] - window.targets).square() * mask
        return errors.sum(), mask.sum(), tuple(part[0] for part in state)


def train_in_lanes(model: Regression, items: list, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Trains for an epoch; returns the targets, and the time steps with padding."""
    truncation, carry, num_targets, num_time_steps = Truncation(K1), None, 0, 0
    for batch in SequenceLanes(items, NUM_LANES, K1, inputs=0, targets=1, shuffle=True):
        for window in batch.windows:
            cost = truncation(model, window, carry)
            optimizer.zero_grad()
            (cost.loss / cost.num_targets).backward()
            optimizer.step()
            carry = cost.carry.detach()
            num_targets += int(cost.num_targets)
            num_time_steps += window.num_lanes * window.num_time_steps
    return num_targets, num_time_steps


def train_padded(model: Regression, items: list, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Trains for an epoch on padded batches of similar lengths; returns the same."""
    order = torch.randperm(len(items)).tolist()
    blocks = [
        sorted(order[at : at + 16 * NUM_LANES], key=lambda i: len(items[i][0]))
        for at in range(0, len(order), 16 * NUM_LANES)
    ]
    batches = [block[at : at + NUM_LANES] for block in blocks for at in range(0, len(block), NUM_LANES)]
    num_targets = num_time_steps = 0
    for number in torch.randperm(len(batches)).tolist():
        chosen = [items[i] for i in batches[number]]
        inputs, targets = (
            nn.utils.rnn.pad_sequence([item[part] for item in chosen], batch_first=True) for part in (0, 1)
        )
        lengths = torch.tensor([len(item[0]) for item in chosen])
        mask = torch.arange(inputs.shape[1]) < lengths[:, None]
        loss, num, _ = model.window_loss(Window(inputs, targets, None, mask), model.initial_state(len(chosen)))
        optimizer.zero_grad()
        (loss / num).backward()
        optimizer.step()
        num_targets, num_time_steps = num_targets + int(num), num_time_steps + inputs.numel() // FEATURES
    return num_targets, num_time_steps


def one_round(kind: str, num_sequences: int, num_threads: int) -> None:
    """Trains for an epoch, and prints what it took."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(1)
    items = [(torch.randn(n, FEATURES), torch.randn(n)) for n in lengths_of(num_sequences).tolist()]
    model = Regression()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    num_targets, num_time_steps = (train_in_lanes if kind == "lanes" else train_padded)(model, items, optimizer)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([num_targets / seconds, 1 - num_targets / num_time_steps, (peak - before) / 1024]))


def packing(rounds: int = 5, num_sequences: int = 1024, num_threads: int = 2) -> None:
    """Compares lanes with padded batches."""
    found: dict[str, list[list[float]]] = {"lanes": [], "padded": []}
    for _ in range(rounds):
        for kind, rows in found.items():
            command = [sys.executable, __file__, "one_round", kind, str(num_sequences), str(num_threads)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| | useful targets/s | padding | peak memory beyond the data, MiB |\n|---|---|---|---|")
    for kind, rows in found.items():
        speeds, padding, memory = zip(*rows, strict=True)
        speed = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        print(f"| {kind} | {speed} | {padding[0]:.1%} | {statistics.median(memory):,.0f} |")
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(found["lanes"], found["padded"], strict=True)]
    print(f"\nlanes / padded: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


class Windows(Dataset):
    """The windows of sequences, one by one."""

    def __init__(self, items: list[dict[str, Tensor]]) -> None:
        self.items = items
        self.places = [(i, at) for i, item in enumerate(items) for at in range(0, len(item["a"]) - K1 + 1, K1)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        i, at = self.places[number]
        return {name: leaf[at : at + K1] for name, leaf in self.items[i].items()}


def loading(rounds: int = 7, num_sequences: int = 256, num_threads: int = 2) -> None:
    """Measures reading alone, and how much longer a training step takes with it."""
    torch.set_num_threads(num_threads)
    generator = torch.Generator().manual_seed(1)
    lengths = [K1 * n for n in torch.randint(4, 40, (num_sequences,), generator=generator).tolist()]
    items = [{name: torch.randn(n, 4) for name in "abcd"} | {"y": torch.randn(n)} for n in lengths]
    num_bytes = sum(lengths) * 17 * 4

    def lanes() -> SequenceLanes:
        return SequenceLanes(items, NUM_LANES, K1, inputs=list("abcd"), targets="y")

    speeds: dict[str, list[float]] = {"lanes": [], "DataLoader": []}
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in lanes():
            pass
        speeds["lanes"].append(num_bytes / (time.perf_counter() - start) / 1e6)
        loader = DataLoader(Windows(items), NUM_LANES, num_workers=2)
        start = time.perf_counter()
        for _ in loader:
            pass
        speeds["DataLoader"].append(num_bytes / (time.perf_counter() - start) / 1e6)
    for kind, values in speeds.items():
        print(f"{kind}: {statistics.median(values):,.0f} MB/s ({min(values):,.0f} to {max(values):,.0f})")

    model = Regression()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def train(batches) -> float:
        truncation, carry, steps, start = Truncation(K1), None, 0, time.perf_counter()
        for batch in batches:
            if steps == 12:
                break
            (window,) = batch.windows
            window = window._replace(inputs=torch.cat([window.inputs[name] for name in "abcd"], -1))
            cost = truncation(model, window, carry)
            optimizer.zero_grad()
            (cost.loss / cost.num_targets).backward()
            optimizer.step()
            carry, steps = cost.carry.detach(), steps + 1
        return (time.perf_counter() - start) / steps

    ready = [batch for batch, _ in zip(lanes(), range(12), strict=False)]
    train(ready)
    pairs = [(train(lanes()), train(ready)) for _ in range(rounds)]
    share = [reading / alone - 1 for reading, alone in pairs]
    step = statistics.median(alone for _, alone in pairs)
    added = f"{statistics.median(share):.1%} ({min(share):.1%} to {max(share):.1%})"
    print(f"a step of an LSTM of {UNITS} units: {1000 * step:.0f} ms; reading adds {added}")


if __name__ == "__main__":
    auto_cli([packing, loading, one_round])
