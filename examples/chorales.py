"""Polyphonic music: which of 88 keys sound in the next chord, given all the chords so far.

Takes a JSON file with the keys train, valid and test, each a list of pieces, each a list of chords, each a list of MIDI
pitches, such as the JSB chorales (Boulanger-Lewandowski 2012).

    python examples/chorales.py jsb-chorales-quarter.json
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from lit_tbptt import LSTM, Batch, LitTBPTT, Window
from lit_tbptt.tbptt import State

LOWEST, KEYS = 21, 88


class Pieces:
    """Pieces dealt to lanes: a lane that has run dry takes the next one, from a window's start, with a reset."""

    def __init__(self, pieces: list[list[list[int]]], num_lanes: int, k1: int) -> None:
        lanes: list[list[tuple[Tensor, bool]]] = [[] for _ in range(num_lanes)]
        for piece in pieces:
            chords = torch.zeros(len(piece) + 1, KEYS)  # a silence comes first
            for chord, pitches in zip(chords[1:], piece, strict=True):
                chord[[pitch - LOWEST for pitch in pitches]] = 1
            shortest = min(lanes, key=len)
            shortest += [(chords[t : t + k1 + 1], t == 0) for t in range(0, len(piece), k1)]
        self.windows = []
        for number in range(max(map(len, lanes))):
            inputs, targets = torch.zeros(2, num_lanes, k1, KEYS)
            reset, mask = torch.zeros(num_lanes, dtype=torch.bool), torch.zeros(num_lanes, k1, dtype=torch.bool)
            for row, lane in enumerate(lanes):
                if number < len(lane):
                    chords, reset[row] = lane[number]
                    steps = len(chords) - 1
                    inputs[row, :steps], targets[row, :steps], mask[row, :steps] = chords[:-1], chords[1:], True
            self.windows.append(Window(inputs, targets, reset, mask))

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Batch]:
        return (Batch((window,), {"window": number}) for number, window in enumerate(self.windows))


class Composer(LitTBPTT):
    """An LSTM with a yes-or-no output for every key."""

    def __init__(self, k1: int, k2: int | None, hidden_size: int) -> None:
        super().__init__(k1, k2, clip_norm=5.0)
        self.core = LSTM(hidden_size, input_size=KEYS)
        self.head = nn.Linear(hidden_size, KEYS)

    def initial_state(self, num_lanes: int) -> State:
        return self.core.initial_state(num_lanes)

    def window_loss(self, window: Window, state: State) -> tuple[Tensor, Tensor, State]:
        outputs, state = self.core(window.inputs, state)
        losses = nn.functional.binary_cross_entropy_with_logits(self.head(outputs), window.targets, reduction="none")
        return losses[window.mask].sum(), window.mask.sum(), state

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 3e-3)


def main(
    path: Path, k1: int = 20, k2: int | None = None, hidden_size: int = 200, num_lanes: int = 13, num_epochs: int = 15
) -> dict[str, float]:
    """Trains on the pieces of a file.

    Returns:
        The nats per chord on the validation and test pieces.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(1, verbose=False)
    pieces = json.loads(path.read_text())
    data = {split: Pieces(pieces[split], num_lanes, k1) for split in ("train", "valid", "test")}
    trainer = Trainer(max_epochs=num_epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    model = Composer(k1, k2, hidden_size)
    trainer.fit(model, data["train"], data["valid"])
    found = {"valid": trainer.callback_metrics["val/loss"].item()}
    trainer.test(model, data["test"], verbose=False)
    return found | {"test": trainer.callback_metrics["test/loss"].item()}


if __name__ == "__main__":
    print(auto_cli(main))
