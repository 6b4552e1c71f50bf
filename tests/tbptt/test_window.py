"""Windows: their shapes, and how they are cut and put together."""

import pytest
import torch
from jaxtyping import TypeCheckError
from lightning.fabric.utilities import move_data_to_device
from torch.testing import assert_close

from lit_tbptt import Batch, Window

INPUTS, TARGETS = torch.arange(24.0).view(3, 4, 2), torch.arange(12).view(3, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": torch.zeros(3, 5)},
        {"targets": torch.zeros(2, 4)},
        {"reset": torch.zeros(4, dtype=torch.bool)},
        {"reset": torch.zeros(3)},
        {"mask": torch.ones(3, 5, dtype=torch.bool)},
        {"mask": torch.ones(4, 3, dtype=torch.bool)},
    ],
)
def test_the_tests_check_the_shapes_of_every_window(wrong):
    with pytest.raises(TypeCheckError):
        Window(**{"inputs": INPUTS, "targets": TARGETS} | wrong)


def test_a_window_that_is_cut_and_joined_is_the_same():
    reset, mask = torch.tensor([True, False, True]), TARGETS % 5 > 0
    whole = Window(INPUTS, TARGETS, reset, mask)
    first, second = whole.split(1)
    assert second.reset is None
    assert (first.num_time_steps, second.num_time_steps) == (1, 3)
    assert_close(first.join(second)[:4], whole[:4], rtol=0, atol=0)
    with pytest.raises(ValueError, match="with resets"):
        second.join(first)


def test_map_reaches_every_tensor_and_leaves_none_alone():
    halves = Window(INPUTS, TARGETS, None, TARGETS > 3).map(lambda part: part[:2])
    assert halves.num_lanes == 2
    assert halves.reset is None
    assert torch.equal(halves.mask, (TARGETS > 3)[:2])


def test_lightning_moves_the_windows_of_a_batch_and_leaves_its_position():
    position = {"lanes": torch.zeros(3)}
    batch = Batch((Window(INPUTS, TARGETS), Window(INPUTS, TARGETS, mask=TARGETS > 3)), position)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert [[part.device.type for part in window if part is not None] for window in moved.windows] == [
        ["meta"] * 2,
        ["meta"] * 3,
    ]
    assert moved.windows[0].mask is None
    assert moved.position is position
    assert moved.position["lanes"].device.type == "cpu"
    assert batch.to("meta").windows[1].mask.device.type == "meta"
