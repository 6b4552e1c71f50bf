"""Polyphonic music: which of 88 keys sound in the next chord, given all the chords so far.

Takes a JSON file with the keys train, valid and test, each a list of pieces, each a list of chords, each a list of MIDI
pitches, such as the JSB chorales (Boulanger-Lewandowski 2012).

    python examples/chorales.py jsb-chorales-quarter.json

gives 8.59 nats per chord on the validation pieces and 8.71 on the test pieces of the chorales at quarter notes.
"""

import json
import logging
from pathlib import Path

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from lit_tbptt import LSTM, LitTBPTT, SequenceLanesDataModule, Window
from lit_tbptt.tbptt import State

LOWEST, KEYS = 21, 88


def piano_roll(piece: list[list[int]]) -> Tensor:
    """Returns `[chord, key]`, 1 where a key sounds; a silence comes first, from which the first chord is predicted."""
    chords = torch.zeros(len(piece) + 1, KEYS)
    for chord, pitches in zip(chords[1:], piece, strict=True):
        chord[[pitch - LOWEST for pitch in pitches]] = 1
    return chords


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
        mask = window.mask_or_ones()
        return losses[mask].sum(), mask.sum(), state

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
    pieces = {split: list(map(piano_roll, some)) for split, some in json.loads(path.read_text()).items()}
    data = SequenceLanesDataModule(
        pieces["train"], pieces["valid"], pieces["test"], shift=1, num_lanes=num_lanes, k1=k1
    )
    trainer = Trainer(max_epochs=num_epochs, accelerator="cpu", logger=False, enable_checkpointing=False)
    model = Composer(k1, k2, hidden_size)
    trainer.fit(model, data)
    found = {"valid": trainer.callback_metrics["val/loss"].item()}
    trainer.test(model, data, verbose=False)
    return found | {"test": trainer.callback_metrics["test/loss"].item()}


if __name__ == "__main__":
    print(auto_cli(main))
