"""How a token is chosen: temperature, top_k, top_p, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from lit_tbptt import InputError
from lit_tbptt.models.sampling import Sampling

LOGITS = torch.tensor([0.0, -torch.inf, 2.0, 1.0, -torch.inf, -1.0])
LIKELIEST_FIRST = [2, 3, 0, 5]


def shares(sampling, logits=LOGITS, count=9000):
    """How often each token is chosen by draws that are spread evenly."""
    draws = (torch.arange(count, dtype=torch.double)[:, None] + 1) / count
    return torch.bincount(sampling(logits.expand(count, -1), draws), minlength=len(logits)) / count


def test_tokens_are_sampled_as_often_as_they_are_likely():
    assert_close(shares(Sampling(0.7)), torch.softmax(LOGITS / 0.7, 0), rtol=0, atol=1 / 9000)
    narrowed = shares(Sampling(0.7, top_k=2))
    assert_close(narrowed[[2, 3]], torch.softmax(LOGITS[[2, 3]] / 0.7, 0), rtol=0, atol=1 / 9000)
    assert narrowed[[2, 3]].sum() == 1


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.6, 0.65, 0.8, 0.95, 0.999, 1.0])
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_it(top_p, temperature):
    probabilities = torch.softmax(LOGITS.double() / temperature, 0).tolist()
    kept, reached = [], 0.0
    for token in LIKELIEST_FIRST:
        if reached < top_p:
            kept.append(token)
            reached += probabilities[token]
    expected = [probabilities[token] / reached if token in kept else 0.0 for token in range(len(LOGITS))]
    found = shares(Sampling(temperature, top_p=top_p))
    assert_close(found.double(), torch.tensor(expected, dtype=torch.double), rtol=0, atol=2 / 9000)


def test_top_p_is_of_what_top_k_has_left():
    two, both = Sampling(1.0, top_k=2), Sampling(1.0, top_k=2, top_p=0.7)
    assert shares(two)[2] < 0.75  # e / (1 + e)
    assert shares(Sampling(1.0, top_p=0.7))[3] > 0  # alone, token 2 has .64 of all
    assert shares(both)[2] == 1


def test_lanes_are_narrowed_each_for_itself():
    logits = torch.stack([LOGITS, LOGITS.roll(1), LOGITS.flip(0)])
    draws = torch.full((3, 1), 1.0, dtype=torch.double)
    assert Sampling(1.0, top_p=0.5)(logits, draws).tolist() == [2, 3, 3]
    assert Sampling(1.0, top_p=0.8)(logits, draws).tolist() == [3, 4, 3]


def test_top_k_keeps_k_of_equal_tokens():
    draws = torch.linspace(0.01, 1, 50, dtype=torch.double)[:, None]
    assert len(set(Sampling(top_k=2)(torch.zeros(50, 6), draws).tolist())) == 2


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(top_k=3), Sampling(top_p=0.5)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nan_gives_no_token(sampling, value):
    logits = torch.where(torch.arange(6) == 4, value, LOGITS)
    assert sampling(logits[None], torch.full((1, 1), 0.5, dtype=torch.double)).item() == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, r"temperature=-0.5: must be a finite number, 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0: must be 1 or more"),
        ({"top_p": 0.0}, r"top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p=1.5"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)
