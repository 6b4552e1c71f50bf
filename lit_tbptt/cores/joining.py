"""Concatenation of outputs in the memory order they have."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def join_in_time(before: Float[Tensor, "lane time output"], rest: Float[Tensor, "lane later output"]) -> Tensor:
    """Concatenates outputs in time, in the memory order they have, in which dropout masks are drawn."""
    return _join([before, rest], 1)


def join_features(parts: Sequence[Float[Tensor, "lane time _"]]) -> Float[Tensor, "lane time feature"]:
    """Concatenates features, in the memory order of the first part."""
    return _join(parts, 2)


def _join(parts: Sequence[Tensor], axis: int) -> Tensor:
    order = sorted(range(3), key=parts[0].stride, reverse=True)
    joined = torch.cat([part.permute(order) for part in parts], order.index(axis))
    return joined.permute([order.index(each) for each in range(3)])
