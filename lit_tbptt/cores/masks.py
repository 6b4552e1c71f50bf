"""Dropout masks that are drawn once per window."""

from typing import Any

import torch
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.random_state import shared_generator


def shared_mask(like: Tensor, probability: float) -> Tensor:
    """Returns a dropout mask of a tensor's shape, 0 or 1 / (1 - probability), which is the same on all ranks."""
    kept = torch.empty_like(like).bernoulli_(1 - probability, generator=shared_generator(like.device))
    return kept.div_(1 - probability)


def check_noise(noise: Any, setting: str) -> None:
    """Checks that the noise of a window was drawn.

    Args:
        noise: What `begin_window` returned.
        setting: The setting that needs it, for the message.

    Raises:
        InputError: There is none.
    """
    if noise is None:
        raise InputError(
            f"{setting}: the masks of a window are drawn by begin_window(num_lanes); set `noise` to what it returns, "
            "as Truncation does, or call eval()"
        )
