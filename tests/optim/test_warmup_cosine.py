"""The learning rate at every step."""

import math

import pytest
import torch

from lit_tbptt import InputError
from lit_tbptt.optim import WarmupCosineLR


def test_warmup_then_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosineLR(optimizer, warmup_steps=3, num_steps=11, final_ratio=0.1)
    found = []
    for _ in range(13):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.5, 1.0, 1.5] + [
        2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(step, 8) / 8))) for step in range(10)
    ]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1: must be 0 or more"),
        ({"num_steps": 0}, "num_steps=0: must be 1 or more, or left out"),
        ({"final_ratio": -0.1}, r"final_ratio=-0\.1: must be 0 or more"),
        ({"final_ratio": math.nan}, "final_ratio=nan: must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        WarmupCosineLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), **options)
