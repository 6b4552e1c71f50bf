"""A guitar amplifier's sound: an LSTM learns an audio effect from one recording of its input and output.

The effect is a compressor, an overdrive and two filters; it remembers for a quarter of a second how loud its input was.
The figure is the error-to-signal ratio (ESR) on ten other seconds: the energy of the error over that of the effect's
output (Wright et al. 2019, "Real-time black-box modelling with recurrent neural networks"). There the best function of
the present sample has .10, and the effect itself, started from silence 1000 samples before what is scored, .07.

Three ways to train on as many targets. The first `burn_in` samples of a piece, which starts from zeros, are not scored:

    python examples/amplifier.py --mode carried   # .031 pieces of 64 windows, state carried, gradients cut at windows
    python examples/amplifier.py --mode full      # .083 pieces of one long window: 210 steps where the others make 3200
    python examples/amplifier.py --mode random    # .031 pieces of one window, from random places, half of it burn-in
"""

import logging
import math
from typing import Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn

from lit_tbptt import LSTM, LitTBPTT, SequenceLanes, Window
from lit_tbptt.tbptt import State

RATE = 48_000  # samples per second


def plucked(num_samples: int, seed: int) -> np.ndarray:
    """Returns `[time]` plucked strings: notes of random pitch, length and loudness, with a little noise."""
    generator = np.random.default_rng(seed)
    sound, start = generator.normal(0, 1e-3, num_samples), 0
    while start < num_samples:
        time = np.arange(min(generator.integers(RATE // 20, RATE // 2), num_samples - start)) / RATE
        pitch, loudness = 80 * 10 ** generator.uniform(0, 1), 10 ** generator.uniform(-1.7, -0.1)
        for harmonic in range(1, 7):
            decay = np.exp(-harmonic * time / generator.uniform(0.1, 1))
            wave = np.sin(2 * np.pi * harmonic * pitch * time) * decay
            sound[start : start + len(time)] += loudness * wave / harmonic
        start += len(time)
    return sound.astype(np.float32)


def amplified(sound: np.ndarray) -> np.ndarray:
    """Returns what the effect makes of `[time]` samples."""
    attack, release = 1 - math.exp(-1 / (0.005 * RATE)), 1 - math.exp(-1 / (0.25 * RATE))
    high_pass, low_pass = (1 - math.exp(-2 * math.pi * hertz / RATE) for hertz in (60, 5000))
    level, lows, smooth, out = 0.0, 0.0, 0.0, []
    for sample in sound.tolist():
        level += (attack if abs(sample) > level else release) * (abs(sample) - level)
        gain = (0.05 / max(0.05, level)) ** 0.7  # above the threshold, 10 dB become 3 dB
        driven = math.tanh(12 * gain * sample + 0.3) - math.tanh(0.3)
        lows += high_pass * (driven - lows)
        smooth += low_pass * (driven - lows - smooth)
        out.append(smooth)
    return np.array(out, np.float32)


class Amplifier(LitTBPTT):
    """An LSTM that says by how much the output differs from the input."""

    def __init__(self, k1: int, hidden_size: int, num_steps: int, lr: float) -> None:
        super().__init__(k1, clip_norm=1.0)
        self.core, self.head = LSTM(hidden_size, input_size=1), nn.Linear(hidden_size, 1)
        self.num_steps, self.lr = num_steps, lr

    def initial_state(self, num_lanes: int) -> State:
        return self.core.initial_state(num_lanes)

    def predict_window(self, window: Window, state: State) -> tuple[Tensor, State]:
        outputs, state = self.core(window.inputs[..., None], state)
        return window.inputs + self.head(outputs)[..., 0], state

    def outputs_loss(self, outputs: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        mask = window.mask_or_ones()
        return (outputs - window.targets)[mask].square().sum(), mask.sum()

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Targets(Callback):
    """Counts the samples that are scored."""

    count = 0

    def on_window_end(self, trainer: Trainer, module: Amplifier, window: Window) -> None:
        self.count += int(window.mask_or_ones().sum())


def main(mode: Literal["carried", "full", "random"] = "carried", k1: int = 1024, burn_in: int = 1000,
         windows_per_piece: int | None = None, num_lanes: int = 32, hidden_size: int = 32, lr: float = 5e-3,
         num_seconds: float = 90, num_epochs: int = 24, seed: int = 1) -> dict[str, float]:  # fmt: skip
    """Trains on `num_epochs` times as many targets as the recording has samples; returns the ESR."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(seed, verbose=False)
    sounds = [plucked(int(seconds * RATE), seed + i) for i, seconds in enumerate((num_seconds, num_seconds / 9))]
    train, test = ((sound, amplified(sound)) for sound in sounds)
    piece = k1 * (windows_per_piece or {"carried": 64, "full": 16, "random": 1}[mode])
    piece += burn_in if mode == "random" else 0
    window = k1 if mode == "carried" else piece
    num_steps = num_epochs * len(train[0]) * piece // ((piece - burn_in) * num_lanes * window)
    lanes = SequenceLanes([train], num_lanes, window, max_length=piece - burn_in, burn_in=burn_in, shuffle=True,
                          repeat=True, random_lanes=num_lanes - 1 if mode == "random" else 0, seed=seed)  # fmt: skip
    model, targets = Amplifier(window, hidden_size, num_steps, lr), Targets()
    trainer = Trainer(max_steps=num_steps, callbacks=targets, accelerator="cpu", logger=False,
                      enable_checkpointing=False)  # fmt: skip
    trainer.fit(model, lanes)
    (scores,) = trainer.test(model, SequenceLanes([test], 1, k1), verbose=False)
    esr = scores["test/loss"] / np.square(test[1]).mean()
    return {"ESR": round(float(esr), 5), "targets": targets.count, "steps": num_steps}


if __name__ == "__main__":
    print(auto_cli(main))
