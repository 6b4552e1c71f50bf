"""A task and a data module that are not of this package, and their command line: `python oscillator.py fit`."""

import os
import signal

import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import nn

from lit_tbptt import Batch, LitTBPTT, Window
from lit_tbptt.cli import LitCLI


class Waves:
    """Windows of noisy sines, which can be started anywhere."""

    def __init__(self, seed, num_lanes, k1, num_batches):
        time = torch.arange(num_batches * 2 * k1 + 1.0)
        generator = torch.Generator().manual_seed(seed)
        clean = torch.stack([(time * (0.1 + 0.03 * lane)).sin() for lane in range(num_lanes)])
        noisy = clean + 0.2 * torch.randn(clean.shape, generator=generator)
        self.windows = list(Window(noisy[:, :-1], clean[:, 1:]).pieces(k1))
        self.start = 0

    def __len__(self):
        return len(self.windows) // 2

    def __iter__(self):
        start, self.start = self.start, 0
        for number in range(start, len(self)):
            yield Batch(tuple(self.windows[2 * number : 2 * number + 2]), {"batch": number})

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.start = (0 if state["position"] is None else state["position"]["batch"]) + state["skip"]


class WavesData(LightningDataModule):
    """Sines with noise.

    Args:
        num_lanes: Sines of different frequencies.
        k1: Time steps per window.
    """

    def __init__(self, num_lanes: int = 3, k1: int = 5):
        super().__init__()
        self.num_lanes, self.k1 = num_lanes, k1

    def train_dataloader(self):
        return Waves(1, self.num_lanes, self.k1, 11)

    def val_dataloader(self):
        return Waves(2, self.num_lanes, self.k1, 4)


class Oscillator(LitTBPTT):
    """Predicts the clean sine from the noisy one.

    Args:
        hidden_size: Units.
        **training: The arguments of LitTBPTT, by name.
    """

    def __init__(self, hidden_size: int = 6, **training):
        super().__init__(**training)
        self.core, self.head, self.drop = (
            nn.GRU(1, hidden_size, batch_first=True),
            nn.Linear(hidden_size, 1),
            nn.Dropout(),
        )

    def initial_state(self, num_lanes):
        return self.head.weight.new_zeros(num_lanes, self.core.hidden_size)

    def predict_window(self, window, state):
        outputs, state = self.core(window.inputs[..., None], state[None].contiguous())
        return self.head(self.drop(outputs))[..., 0], state[0]

    def outputs_loss(self, outputs, window):
        return ((outputs - window.targets) ** 2).sum(), outputs.numel()


class SignalAt(Callback):
    """Sends its process a signal after some steps."""

    def __init__(self, step: int, name: str = "SIGKILL"):
        self.step, self.name = step, name

    def on_step_end(self, trainer, module):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.Signals[self.name])


if __name__ == "__main__":
    LitCLI(Oscillator, WavesData)
