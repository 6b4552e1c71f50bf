"""Operations on a carried state: any pytree of tensors whose leaves all have the lane axis first."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from lit_tbptt.errors import InputError

State = Any


def detach(state: State) -> State:
    """Returns the same values, cut from the graph that computed them."""
    if type(state) is dict:  # which most states are; a general pytree takes three times as long
        return {name: detach(part) for name, part in state.items()}
    return state.detach() if isinstance(state, Tensor) else tree_map(Tensor.detach, state)


def requires_grad(state: State) -> bool:
    """Tells whether a gradient could flow into any leaf of the state."""
    return any(leaf.requires_grad for leaf in _leaves(state))


def num_lanes(state: State) -> int | None:
    """Returns the number of lanes of a state, which is checked; or None for one without a leaf.

    Raises:
        InputError: A leaf is no tensor, or the leaves disagree, so that some leaf does not have the lane axis first.
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
    """Returns how often each leaf has been changed in place."""
    return [leaf._version for leaf in tree_leaves(state)]


def check_versions(state: State, before: list[int]) -> None:
    """Makes sure that no leaf has been changed in place since `versions` was called.

    Raises:
        InputError: One has. The state is run from more than once: for the context, and where it is computed again.
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
        return list(state.values())  # as above
    return tree_leaves(state)


def _leaves_with_path(state: State) -> list[tuple[Any, Any]]:
    return tree_flatten_with_path(state)[0]


def cast_like(state: State, given: State) -> State:
    """Casts every leaf to the dtype of the same leaf of `given`; under autocast a core may return another one."""
    return tree_map(lambda leaf, reference: leaf.to(reference.dtype), state, given)


def reset_lanes(reset: Bool[Tensor, "lane"], initial: State, carried: State) -> State:
    """Takes `initial` for the lanes where `reset` is true and `carried` for the others.

    `torch.where` and not indexing: there is no host synchronization, and gradient reaches `initial` from exactly the
    lanes that were reset.
    """
    return tree_map(lambda fresh, old: torch.where(reset.view(-1, *[1] * (old.ndim - 1)), fresh, old), initial, carried)
