"""AWDLSTM on Penn Treebank: its losses beside those of a loop written as the paper says, and its speed beside LSTM's.

    python benchmarks/awd_lstm.py losses ptb/train.txt               at the published sizes
    python benchmarks/awd_lstm.py losses ptb/train.txt --hidden_size 60 --embedding_size 40
    python benchmarks/awd_lstm.py speed ptb/train.txt

losses: SGD on words in float32, with the published dropouts, gradients clipped at 0.25. The loop (`awd_reference.py` of
the tests) runs time step by time step, with weights of its own and the masks that the package draws. At the published
learning rate, --rate 30, differences of rounding grow (to 2e-2 with 60 units); with --double true they stay small.

speed: tokens per second of whole steps, LSTM and AWDLSTM in turn with layers of the same sizes, and the same dropouts
but for the recurrent matrices; ratios are of neighbours in a round.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch.nn.utils import clip_grad_norm_

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from awd_reference import Reference

from lit_tbptt import AWDLSTM, LSTM, Carry, RecurrentCore, RecurrentLM, Truncation, Window

CLIP_NORM = 0.25


def language_model(vocabulary_size: int, core: RecurrentCore, tie_weights: bool) -> RecurrentLM:
    """Returns a model with the dropouts that the paper gives for Penn Treebank."""
    return RecurrentLM(
        vocabulary_size,
        core,
        embedding_dropout=0.4,
        output_dropout=0.4,
        dropout_over_time="shared",
        tie_weights=tie_weights,
        vocabulary_dropout=0.1,
    )


def lanes_of(path: Path, num_lanes: int, num_windows: int, k1: int) -> tuple[torch.Tensor, int]:
    """Returns `[lane, time]` words, every lane from a place of its own, and the size of the vocabulary."""
    words = path.read_text().replace("\n", " <eos> ").split()
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    per_lane = len(words) // num_lanes
    ids = torch.tensor([numbers[word] for word in words[: per_lane * num_lanes]]).view(num_lanes, per_lane)
    if per_lane <= num_windows * k1:
        sys.exit(f"{path}: {len(words):,} words are too few for {num_windows} windows of {num_lanes} x {k1}")
    return ids[:, : num_windows * k1 + 1].contiguous(), len(numbers)


def step(
    model: RecurrentLM, truncation: Truncation, window: Window, carry: Carry | None, rate: float
) -> tuple[float, Carry]:
    """Makes a step of SGD; returns the mean loss and the carry."""
    cost = truncation(model, window, carry)
    loss = cost.loss / cost.num_targets
    model.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), CLIP_NORM)
    with torch.no_grad():
        for part in model.parameters():
            part -= rate * part.grad
    return loss.item(), cost.carry.detach()


def losses(
    path: Path,
    num_steps: int = 300,
    hidden_size: int = 1150,
    embedding_size: int = 400,
    num_lanes: int = 20,
    k1: int = 70,
    rate: float = 5.0,
    double: bool = False,
    num_threads: int = 2,
) -> None:
    """Prints the losses of both, and their largest difference."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(1)
    ids, vocabulary_size = lanes_of(path, num_lanes, num_steps, k1)
    model = language_model(vocabulary_size, AWDLSTM(hidden_size, input_size=embedding_size), True)
    model = model.double() if double else model
    reference, truncation, carry = Reference(model, ids, k1, k1, {}), Truncation(k1), None
    window, rows = Window(ids[:, :-1], ids[:, 1:]), []
    for number, part in enumerate(window.pieces(k1)):
        loss, carry = step(model, truncation, part, carry, rate)
        expected = reference.loss(number, model.noise).item() / (num_lanes * k1)
        for weight in reference.weights.values():
            weight.grad /= num_lanes * k1
        clip_grad_norm_(reference.weights.values(), CLIP_NORM)
        reference.step(rate)
        rows.append((loss, expected))
        if number % max(1, num_steps // 10) == 0 or number == num_steps - 1:
            print(f"step {number + 1:4}  AWDLSTM {loss:.6f}  loop {expected:.6f}", flush=True)
    differences = [abs(loss - expected) for loss, expected in rows]
    print(f"{len(rows)} steps: largest difference {max(differences):.2e}, median {statistics.median(differences):.2e}")


def speed(
    path: Path,
    rounds: int = 7,
    windows_per_round: int = 10,
    hidden_size: int = 1150,
    embedding_size: int = 400,
    num_lanes: int = 20,
    k1: int = 70,
    num_threads: int = 2,
) -> None:
    """Prints a table of tokens per second."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(1)
    ids, vocabulary_size = lanes_of(path, num_lanes, windows_per_round, k1)
    cores = {
        "LSTM": LSTM(hidden_size, 3, dropout=0.25, input_size=embedding_size),
        "AWDLSTM": AWDLSTM(hidden_size, 3, input_size=embedding_size, output_size=hidden_size),
    }
    models = {name: language_model(vocabulary_size, core, False) for name, core in cores.items()}
    truncation, speeds = Truncation(k1), {name: [] for name in models}
    pieces = list(Window(ids[:, :-1], ids[:, 1:]).pieces(k1))
    for number in range(rounds + 1):  # the first one warms up
        for name, model in models.items():
            carry, start = None, time.perf_counter()
            for part in pieces if number else pieces[:2]:
                _, carry = step(model, truncation, part, carry, 1.0)
            if number:
                speeds[name].append(num_lanes * k1 * len(pieces) / (time.perf_counter() - start))
    ratios = [mine / beside for mine, beside in zip(speeds["AWDLSTM"], speeds["LSTM"], strict=True)]
    print(f"| core, 3 x {hidden_size}, {num_lanes} lanes, k1 = {k1} | tokens/s, median | of LSTM, median | range |")
    print("|---|---|---|---|")
    print(f"| LSTM | {statistics.median(speeds['LSTM']):,.0f} | 1 | |")
    print(
        f"| AWDLSTM | {statistics.median(speeds['AWDLSTM']):,.0f} | {statistics.median(ratios):.3f} | "
        f"{min(ratios):.3f} to {max(ratios):.3f} |"
    )


if __name__ == "__main__":
    auto_cli([losses, speed])
