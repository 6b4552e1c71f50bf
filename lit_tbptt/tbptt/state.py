"""Functions on states. A state is any pytree of tensors with the lane axis first in every leaf."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from lit_tbptt.errors import InputError

State = Any


def detach(state: State) -> State:
    """Detaches every leaf from the autograd graph."""
    if type(state) is dict:  # the common case; a general pytree takes three times as long
        return {name: detach(part) for name, part in state.items()}
    return state.detach() if isinstance(state, Tensor) else tree_map(Tensor.detach, state)


def requires_grad(state: State) -> bool:
    """Returns whether any leaf requires a gradient."""
    return any(leaf.requires_grad for leaf in _leaves(state))


def num_lanes(state: State) -> int | None:
    """Checks a state and returns its number of lanes; None if it has no leaves.

    Raises:
        InputError: A leaf is not a tensor, or the first sizes of the leaves differ.
    """
    leaves = _leaves(state)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        path, leaf = next((path, leaf) for path, leaf in _leaves_with_path(state) if not isinstance(leaf, Tensor))
        raise InputError(
            "a state is made of tensors in tuples, lists and dictionaries, and "
            f"state{keystr(path)} is a {type(leaf).__name__}"
        )
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(sizes) > 1:
        raise InputError(f"the state's leaves must all have the lane axis first, but their first sizes are {sizes}")
    return sizes.pop() if sizes else None


def versions(state: State) -> list[int]:
    """Returns the in-place version counter of each leaf."""
    return [leaf._version for leaf in tree_leaves(state)]


def check_versions(state: State, before: list[int]) -> None:
    """Checks that no leaf was changed in place since `versions` was called.

    Raises:
        InputError: A leaf was changed. The same state is used more than once: for the context and for recomputation.
    """
    if versions(state) != before:
        changed = [
            keystr(path)
            for (path, leaf), version in zip(_leaves_with_path(state), before, strict=True)
            if leaf._version != version
        ]
        raise InputError(
            f"state{changed[0]} was changed in place, and it is run from more than once: return a new tensor, n + 1 "
            "and not n += 1"
        )


def _leaves(state: State) -> list[Any]:
    if type(state) is dict and all(isinstance(part, Tensor) for part in state.values()):
        return list(state.values())  # the common case, as in `detach`
    return tree_leaves(state)


def _leaves_with_path(state: State) -> list[tuple[Any, Any]]:
    return tree_flatten_with_path(state)[0]


def accumulator(weight: Tensor, *sizes: int) -> Tensor:
    """Returns zeros on the weight's device; sums over many time steps need float32 or more."""
    return weight.new_zeros(sizes, dtype=torch.promote_types(weight.dtype, torch.float32))


def cast_like(state: State, given: State) -> State:
    """Casts every leaf to the dtype of the same leaf of `given`; under autocast a core may return another dtype."""
    return tree_map(lambda leaf, reference: leaf.to(reference.dtype), state, given)


def reset_lanes(reset: Bool[Tensor, "lane"], initial: State, carried: State) -> State:
    """Returns `initial` for the lanes where `reset` is true, and `carried` for the others.

    It uses `torch.where` instead of indexing, so there is no host synchronization, and `initial` gets gradients from
    exactly the lanes that were reset.
    """
    return tree_map(lambda fresh, old: torch.where(reset.view(-1, *[1] * (old.ndim - 1)), fresh, old), initial, carried)
