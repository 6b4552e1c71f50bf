"""Influence balancing (Tallec & Ollivier 2017): horizons that are too short diverge, random truncation converges.

    s_{t+1} = A s_t + theta (1, ..., 1, -1, ..., -1),  A = I/2 + superdiagonal/2,  loss_t = (s_t[0] - 1)^2 / 2

with n = 23 units, of which p = 10 get theta and the others -theta. Over a short horizon only the positive influence of
theta is seen (d s[0] / d theta = 16.5 over 20 steps), in the long run it is -6; the best theta is -1/6.

    python benchmarks/influence_balancing.py --num_steps 20000

prints theta and the loss at the end of runs with plain SGD from theta = 0.5, k1 = 1.
"""

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from torch import nn

from lit_tbptt import Batch, FallingProbability, LitTBPTT, RandomTruncation, Window

N, P = 23, 10


class InfluenceBalancing(LitTBPTT):
    """One number, theta; its state are the n units."""

    def __init__(self, lr: float, **options):
        super().__init__(k1=1, **options)
        self.theta, self.lr = nn.Parameter(torch.tensor(0.5)), lr
        self.register_buffer("matrix", torch.eye(N) / 2 + torch.diag(torch.full((N - 1,), 0.5), 1))
        self.register_buffer("signs", torch.where(torch.arange(N) < P, 1.0, -1.0))

    def initial_state(self, num_lanes):
        return self.theta.new_zeros(num_lanes, N)

    def window_loss(self, window, state):
        loss = 0.0
        for _ in range(window.num_time_steps):
            state = state @ self.matrix.T + self.theta * self.signs
            loss = loss + (state[:, 0] - 1).square().sum() / 2
        return loss, window.num_time_steps, state

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Nothing:
    """Batches of windows without any input."""

    def __init__(self, num_windows: int, windows_per_batch: int = 100) -> None:
        self.num_batches, self.windows_per_batch = num_windows // windows_per_batch, windows_per_batch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self):
        window = Window(torch.zeros(1, 1), None)
        for number in range(self.num_batches):
            yield Batch((window,) * self.windows_per_batch, {"batch": number})


def run(num_windows: int, lr: float, **options) -> tuple[float, float]:
    """Trains, and returns theta and the loss of the state that it leads to."""
    model = InfluenceBalancing(lr, **options)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Nothing(num_windows))
    theta = float(model.theta)
    return theta, (-6 * theta - 1) ** 2 / 2


def main(num_steps: int = 20_000, lr: float = 1e-4, seeds: int = 3) -> None:
    """Prints a table.

    Args:
        num_steps: Time steps, each a window.
        lr: The learning rate.
        seeds: The number of seeds of random truncation.
    """
    torch.set_num_threads(1)
    rules = {f"k2 = {k2}": {"k2": k2} for k2 in (1, 10, 20, 40, 41, 60, 100)}
    for name, probability in (("1/16", 1 / 16), ("falling, mean 16, tail 4", FallingProbability(16, 4))):
        for seed in range(1, seeds + 1):
            rules[f"random, c = {name}, seed {seed}"] = {"update": RandomTruncation(probability, seed)}
    print("| rule | theta (best: -0.1667) | loss |\n|---|---|---|")
    for name, options in rules.items():
        try:
            theta, loss = run(num_steps, lr, **options)
            print(f"| {name} | {theta:.4g} | {loss:.3g} |", flush=True)
        except Exception as error:  # a loss that is not finite ends a run
            print(f"| {name} | diverged: {type(error).__name__} | |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
