"""The estimated bias of a horizon: of known norms exactly."""

import math

import pytest
import torch

from lit_tbptt import InputError
from lit_tbptt.tbptt.relative_bias import relative_bias


def powers(ratio, num_tokens, first=3.0):
    return first * ratio ** torch.arange(num_tokens, dtype=torch.float64)


@pytest.mark.parametrize("num_tokens", [2, 3, 7, 11])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_of_a_geometric_decay_it_has_a_closed_form(ratio, num_tokens):
    """Of a b^j, j < n: k2 cuts off a b^(k2 - 1) / (1 - b); the lower bound of all is a (1 - 2 b^n) / (1 - b)."""
    bias = relative_bias(powers(ratio, num_tokens), 13)
    expected = [ratio ** (k2 - 1) / (1 - 2 * ratio**num_tokens) for k2 in range(1, 14)]
    assert bias.by_horizon == pytest.approx(expected, rel=1e-12)
    assert bias.ratio_per_token == pytest.approx(ratio, rel=1e-12)


def test_the_least_horizon_is_the_first_below_the_limit():
    bias = relative_bias(powers(0.5, 24), 6)  # about 1, 1/2, 1/4, ...
    assert [bias.least_horizon(limit) for limit in (2.0, 0.6, 0.4, 0.2, 0.04)] == [1, 2, 3, 4, 6]
    assert bias.least_horizon(0.01) is None


def test_of_a_window_it_is_the_mean_over_its_losses():
    """Of k1 = 4 and k2 = 6 they reach back 3, 4, 5 and 6 tokens."""
    reaches, windows = relative_bias(powers(0.6, 9), 11).by_horizon, relative_bias(powers(0.6, 9), 11, 4).by_horizon
    assert windows[:3] == [math.inf] * 3
    assert windows[3:] == pytest.approx([sum(reaches[k2 - 4 : k2]) / 4 for k2 in range(4, 12)])


def test_what_was_measured_counts_and_only_what_lies_beyond_is_fitted():
    norms = torch.tensor([1.0, 1.0, 1.0, 1.0, 8.0, 4.0, 2.0, 1.0])  # 1 + 1/2 + ... = 1 beyond
    bias = relative_bias(norms, 10)
    assert bias.ratio_per_token == pytest.approx(0.5)
    cut_off = [20, 19, 18, 17, 16, 8, 4, 2, 1, 0.5]
    assert bias.by_horizon == pytest.approx([rest / 18 for rest in cut_off])
    assert bias.least_horizon(0.5) == 6


def test_a_reset_ends_the_curve_and_the_rest_is_fitted():
    whole = relative_bias(powers(0.7, 9), 12)
    cut = relative_bias(torch.cat([powers(0.7, 9), torch.zeros(4)]), 12)
    assert cut == whole
    assert relative_bias(torch.tensor([1.0, 0.0, 0.0]), 5) is None
    assert relative_bias(torch.zeros(3), 5) is None


def test_what_has_vanished_is_not_carried_on():
    bias = relative_bias(torch.tensor([1.0, 0.5, 1e-7, 1e-7, 1e-7, 1e-7]), 9)
    assert bias.by_horizon[:3] == pytest.approx([1, 1 / 3, 4e-7 / 1.5], rel=1e-5)
    assert bias.by_horizon[6:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("norms", "ratio"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1),
        ([1.0, 2.0, 4.0, 8.0], 2),
        ([1e-9, 1e-3, 1e3, 1e9], 1e6),
        ([5.0, 1.0, 0.5, 1.0], 2),
        ([1.0, 10.0, math.inf, math.nan], math.inf),
        ([1.0, 0.9, 0.81, 0.729], 0.9),  # more may lie beyond than was measured
    ],
)
def test_norms_that_do_not_decay_give_no_bound(norms, ratio):
    bias = relative_bias(torch.tensor(norms, dtype=torch.float64), 7)
    assert bias.by_horizon == [math.inf] * 7
    assert bias.ratio_per_token == pytest.approx(ratio)
    assert bias.least_horizon(1e9) is None


def test_a_horizon_below_the_window_is_refused():
    with pytest.raises(InputError, match="max_k2=3 with k1=5: must be at least k1"):
        relative_bias(0.5 ** torch.arange(9.0), 3, 5)
