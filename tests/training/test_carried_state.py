"""What the carried state is worth, on a task where it is known.

x_t ~ Bernoulli(1/2), P(y_t = 1) = 0.5 + 0.5 x_{t-3} - 0.25 x_{t-8}. The best possible loss is .454454 nats with the
state carried, and .60460 with the state reset every 5 steps.
"""

import pytest
import torch
from lightning.pytorch import Trainer
from tasks import Batches
from torch import nn

from lit_tbptt import LitTBPTT, Window

K1, LANES, STEPS = 5, 120, 3000


class Echo(LitTBPTT):
    def __init__(self):
        super().__init__(k1=K1, clip_norm=1.0)
        self.core = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def initial_state(self, num_lanes):
        return self.head.weight.new_zeros(num_lanes, 16)

    def window_loss(self, window, state):
        outputs, state = self.core(window.inputs, state.unsqueeze(0).contiguous())
        loss = nn.functional.binary_cross_entropy_with_logits(self.head(outputs), window.targets, reduction="sum")
        return loss, window.targets.numel(), state.squeeze(0)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def batches(reset_every_window, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.bernoulli(torch.full((LANES, steps + 8), 0.5), generator=generator)
    y = torch.bernoulli(0.5 + 0.5 * x[:, 5:-3] - 0.25 * x[:, :-8], generator=generator)
    x, y = x[:, 8:, None], y[..., None]
    reset = torch.ones(LANES, dtype=torch.bool)
    windows = [
        Window(x[:, at : at + K1], y[:, at : at + K1], reset if reset_every_window or at == 0 else None)
        for at in range(0, steps, K1)
    ]
    return Batches(windows, 20)


@pytest.mark.parametrize(("reset_every_window", "least", "most"), [(False, 0.45, 0.50), (True, 0.58, 0.64)])
def test_a_carried_state_is_worth_what_it_should_be(reset_every_window, least, most):
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Echo()
    trainer.fit(model, batches(reset_every_window, STEPS, 1), batches(reset_every_window, 500, 2))
    assert least < trainer.callback_metrics["val/loss"].item() < most
