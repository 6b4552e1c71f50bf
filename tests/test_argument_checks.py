"""What the tests check of arguments: that the checks are there."""

import pytest
import torch
from jaxtyping import TypeCheckError

from lit_tbptt import LSTM, Truncation
from lit_tbptt.models.metrics import summed_nats
from lit_tbptt.tbptt.state import reset_lanes


def test_types_are_checked():
    with pytest.raises(TypeError, match="num_lanes"):
        LSTM(5, input_size=3).initial_state("2")
    with pytest.raises(TypeError, match="recompute_every"):
        Truncation(4, recompute_every=2.5)


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError, match="targets"):
        summed_nats(torch.zeros(2, 3, 7), torch.zeros(2, 4, dtype=torch.long), None)
    with pytest.raises(TypeCheckError, match="mask"):  # a union
        summed_nats(torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeCheckError, match="reset"):
        reset_lanes({"h": torch.zeros(2, 5)}, {"h": torch.zeros(2, 5)}, torch.ones(2, 1, dtype=torch.bool))
