"""The echo task: what a horizon reaches, and what a carried state is worth.

x_t ~ Bernoulli(1/2) and P(y_t = 1) = .5 + .5 x_{t-3} - .25 x_{t-8}. The best possible loss is .6616 nats for a model
that knows neither lag, .5192 with lag 3, .4545 with both; with the state reset every 5 steps it is .6046.

    python examples/echo.py --k1 5
    python examples/echo.py --k1 1 --k2 4
    python examples/echo.py --k1 5 --carry_state false
"""

import logging
from collections.abc import Iterator

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from lit_tbptt import RNN, Batch, LitTBPTT, Window
from lit_tbptt.tbptt import State


class Echoes:
    """Batches of 20 windows over parallel lanes, the same in every epoch."""

    def __init__(self, num_lanes: int, num_time_steps: int, k1: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.bernoulli(torch.full((num_lanes, num_time_steps + 8, 1), 0.5), generator=generator)
        self.y = torch.bernoulli(0.5 + 0.5 * x[:, 5:-3] - 0.25 * x[:, :-8], generator=generator)
        self.x = x[:, 8:]
        self.k1 = k1

    def __len__(self) -> int:
        return -(-self.x.shape[1] // (20 * self.k1))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            some = slice(20 * self.k1 * number, 20 * self.k1 * (number + 1))
            yield Batch(tuple(Window(self.x[:, some], self.y[:, some]).pieces(self.k1)), {"batch": number})


class Echo(LitTBPTT):
    """A tanh RNN that says how likely y_t is 1."""

    def __init__(self, k1: int, k2: int | None, carry_state: bool, hidden_size: int = 16) -> None:
        super().__init__(k1, k2, carry_state=carry_state, clip_norm=1.0)
        self.core = RNN(hidden_size, input_size=1)
        self.head = nn.Linear(hidden_size, 1)

    def initial_state(self, num_lanes: int) -> State:
        return self.core.initial_state(num_lanes)

    def window_loss(self, window: Window, state: State) -> tuple[Tensor, int, State]:
        outputs, state = self.core(window.inputs, state)
        loss = nn.functional.binary_cross_entropy_with_logits(self.head(outputs), window.targets, reduction="sum")
        return loss, window.targets.numel(), state

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(
    k1: int = 5,
    k2: int | None = None,
    carry_state: bool = True,
    num_lanes: int = 200,
    num_time_steps: int = 10_000,
    seed: int = 1,
) -> float:
    """Trains once through `num_time_steps` of every lane.

    Returns:
        The nats per step on other data.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(seed, verbose=False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    train, valid = Echoes(num_lanes, num_time_steps, k1, seed), Echoes(num_lanes, 2000, k1, seed + 1000)
    trainer.fit(Echo(k1, k2, carry_state), train, valid)
    return round(trainer.callback_metrics["val/loss"].item(), 4)


if __name__ == "__main__":
    print(auto_cli(main), "nats per step")
