"""Operations on a carried state: any pytree of tensors whose leaves all have the lane axis first."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

State = Any


def detach(state: State) -> State:
    """Returns the same values, cut from the graph that computed them."""
    return tree_map(Tensor.detach, state)


def requires_grad(state: State) -> bool:
    """Tells whether a gradient could flow into any leaf of the state."""
    return any(leaf.requires_grad for leaf in tree_leaves(state))


def num_lanes(state: State) -> int | None:
    """Returns the number of lanes, or None for a state without a leaf.

    Raises:
        ValueError: The leaves disagree, so some leaf does not have the lane axis first.
    """
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in tree_leaves(state)}
    if len(sizes) > 1:
        raise ValueError(f"the state's leaves must all have the lane axis first, but their first sizes are {sizes}")
    return sizes.pop() if sizes else None


def cast_like(state: State, given: State) -> State:
    """Casts every leaf to the dtype of the same leaf of `given`; under autocast a core may return another one."""
    return tree_map(lambda leaf, reference: leaf.to(reference.dtype), state, given)


def reset_lanes(reset: Bool[Tensor, "lane"], initial: State, carried: State) -> State:
    """Takes `initial` for the lanes where `reset` is true and `carried` for the others.

    `torch.where` and not indexing: there is no host synchronization, and gradient reaches `initial` from exactly the
    lanes that were reset.
    """
    return tree_map(lambda fresh, old: torch.where(reset.view(-1, *[1] * (old.ndim - 1)), fresh, old), initial, carried)
