"""Sequences packed into lanes are trained exactly as the same sequences one by one (frozen weights, summed loss)."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_tbptt import SequenceLanes, Task, Truncation, Window

LENGTHS = [11, 3, 17, 6, 9, 1, 13]


class Controller(Task, nn.Module):
    """A GRU over dictionaries, whose initial state is learned, or computed from what is static."""

    def __init__(self, computed):
        super().__init__()
        torch.manual_seed(2)
        self.core = nn.GRU(4, 5, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(5, 2, dtype=torch.float64)
        self.start = nn.Linear(3, 5, dtype=torch.float64)
        self.computed = computed

    def initial_state(self, num_lanes):
        return self.start.bias.expand(num_lanes, -1)

    def initial_state_of(self, static):
        return self.start(static["goal"]) if self.computed else None

    def window_loss(self, window, state):
        inputs = torch.cat([window.inputs["a"], window.inputs["b"].sqrt()[..., None]], -1)  # a padded zero would be NaN
        outputs, state = self.core(inputs, state[None].contiguous())
        errors = (self.head(outputs) - window.targets).square().sum(-1)[window.mask_or_ones()]
        return errors.sum(), errors.numel(), state[0]


def episodes():
    torch.manual_seed(4)
    return [
        {
            "a": torch.randn(n, 3, dtype=torch.float64),
            "b": torch.rand(n, dtype=torch.float64) + 0.5,
            "action": torch.randn(n, 2, dtype=torch.float64),
            "valid": torch.rand(n) > 0.3,
            "goal": torch.randn(3, dtype=torch.float64),
        }
        for n in LENGTHS
    ]


def gradients(task, windows, k1, k2):
    truncation, carry, loss, num_targets = Truncation(k1, k2), None, 0.0, 0
    for window in windows:
        cost = truncation(task, window, carry)
        cost.loss.backward()
        carry = cost.carry.detach()
        loss, num_targets = loss + cost.loss.item(), num_targets + cost.num_targets
    return loss, num_targets


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (3, 8), (1, 5), (5, 6)])
@pytest.mark.parametrize("burn_in", [0, 2])
def test_packed_lanes_have_the_gradients_of_the_sequences_one_by_one(computed, k1, k2, burn_in):
    lanes = SequenceLanes(
        episodes(),
        3,
        k1,
        2,
        inputs=["a", "b"],
        targets="action",
        static=["goal"],
        mask="valid",
        dtypes=torch.float64,
        burn_in=burn_in,
        shuffle=True,
    )
    packed = Controller(computed)
    ours = gradients(packed, (window for batch in lanes for window in batch.windows), k1, k2)
    alone, loss, num_targets = Controller(computed), 0.0, 0
    for item in episodes():
        n = len(item["a"])
        scored = item["valid"] & (torch.arange(n) >= burn_in)
        whole = Window(
            {"a": item["a"][None], "b": item["b"][None]},
            item["action"][None],
            None,
            scored[None],
            {"goal": item["goal"][None]},
        )
        cost = gradients(alone, whole.pieces(k1), k1, k2)
        loss, num_targets = loss + cost[0], num_targets + cost[1]
    assert ours == (pytest.approx(loss, rel=1e-10), num_targets)
    assert_close([p.grad for p in packed.parameters()], [p.grad for p in alone.parameters()], rtol=1e-10, atol=1e-10)
