"""Sums over targets, and the units they are reported in."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_tbptt.models.accuracy import TokenAccuracy
from lit_tbptt.models.metrics import rates, summed_nats


def test_nats_are_summed_over_scored_targets_and_never_infinite():
    logits = torch.zeros(2, 3, 4, dtype=torch.float64)
    logits[0, 0, 1] = 1e4
    targets = torch.tensor([[1, 0, 0], [0, 0, 0]])
    assert summed_nats(logits, targets)[0].item() == pytest.approx(5 * math.log(4))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    nats, count = summed_nats(logits, targets, mask)
    assert (nats.item(), count.item()) == (pytest.approx(2 * math.log(4)), 3)
    assert summed_nats(logits, torch.zeros_like(targets))[0].item() == pytest.approx(1e4 + 5 * math.log(4))


def test_metrics_do_not_depend_on_how_the_targets_are_cut():
    logits, targets = torch.randn(3, 13, 11, dtype=torch.float64), torch.randint(11, (3, 13))
    mask = torch.rand(3, 13) < 0.7
    whole, parts = TokenAccuracy(), TokenAccuracy()
    whole.update(logits, targets, mask)
    for start in range(0, 13, 4):
        some = slice(start, start + 4)
        parts.update(logits[:, some], targets[:, some], mask[:, some])
    for name, value in whole.compute().items():
        assert_close(parts.compute()[name], value, rtol=0, atol=1e-12)
    assert whole.compute()["accuracy"] == (logits.argmax(-1) == targets)[mask].float().mean()


def test_rates_in_the_units_people_quote():
    assert rates(math.log(8), 2.0) == pytest.approx(
        {"nats_per_token": math.log(8), "perplexity": 8.0, "bits_per_byte": 1.5}
    )
    assert "bits_per_byte" not in rates(1.0)
