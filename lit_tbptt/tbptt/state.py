"""Functions on states. A state is any pytree of tensors with the lane axis first in every leaf."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_leaves, tree_map, tree_structure

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


@contextmanager
def unchanged(owner: Any, state: State) -> Iterator[None]:
    """Checks that what runs inside changes neither the state nor a leaf of it in place.

    Leaves that were made in inference mode count no changes, and are not checked for them.

    Args:
        owner: The task or core that runs, for the message.
        state: The state that it is given.

    Raises:
        InputError: A leaf was changed. The same state is used more than once: for the context and for recomputation.
    """
    before = _leaves(state)
    versions = [_version(leaf) for leaf in before]
    try:
        yield
    except RuntimeError as error:
        # Lanes that `expand` has made share their memory, which torch does not write to.
        shared = any(0 in leaf.stride() for leaf in before if isinstance(leaf, Tensor))
        if not shared or "written-to tensor" not in str(error):
            raise
        raise _changed(owner, "a tensor of the state") from error
    after = _leaves(state)
    if len(after) == len(before) and all(map(operator.is_, after, before)):
        if [_version(leaf) for leaf in after] == versions:
            return
        pairs = zip(_leaves_with_path(state), versions, strict=True)
        path = next(path for (path, leaf), version in pairs if _version(leaf) != version)
        raise _changed(owner, f"state{keystr(path)}")
    raise InputError(
        f"{type(owner).__name__}: tensors in the given state were replaced by others, and it is run from more than "
        "once; return a new dictionary or list, and not the given one"
    )


def _version(leaf: Any) -> int | None:
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else None


def _changed(owner: Any, what: str) -> InputError:
    return InputError(
        f"{type(owner).__name__}: {what} was changed in place, and it is run from more than once: return a new tensor, "
        "n + 1 and not n += 1"
    )


def check_next_state(owner: Any, given: State, returned: State) -> None:
    """Checks that a state has the structure, shapes and dtypes of the one it follows.

    Under autocast the dtypes may differ.

    Args:
        owner: The task or core that computed it.
        given: The state before.
        returned: The state after.

    Raises:
        InputError: It has not.
    """
    if _alike(given, returned):
        return
    num_lanes(given)
    name = type(owner).__name__
    if tree_structure(given) != tree_structure(returned):
        raise InputError(
            f"{name} was given a state of {tree_map(shape_of, given)} and returned one of "
            f"{tree_map(shape_of, returned)}: its structure must stay the same; return a state built like that of "
            "initial_state"
        )
    pairs = zip(_leaves_with_path(given), tree_leaves(returned), strict=True)
    path, old, new = next((path, old, new) for (path, old), new in pairs if not _alike(old, new))
    where = f"state{keystr(path)}" if path else "a state"
    if not isinstance(new, Tensor):
        raise InputError(
            f"{name} was given {where} of {shape_of(old)} and returned a {shape_of(new)}: return the state after the "
            "last time step, a tensor of the same shape"
        )
    if shape_of(old) != shape_of(new):
        raise InputError(
            f"{name} was given {where} of {shape_of(old)} and returned {shape_of(new)}: its shape must stay the same; "
            "carry a fixed size per lane, of [lane, time, feature] the last time step alone"
        )
    raise InputError(
        f"{name} was given {where} of {old.dtype} and returned {new.dtype}: its dtype must stay the same; make it in "
        "initial_state with the dtype of the weights, weight.new_zeros(...), or cast it back"
    )


def _alike(given: State, returned: State) -> bool:
    if isinstance(given, Tensor):
        return (
            isinstance(returned, Tensor)
            and given.shape == returned.shape
            and (given.dtype == returned.dtype or torch.is_autocast_enabled(given.device.type))
        )
    if isinstance(given, dict) and isinstance(returned, dict):  # in any order, as for `tree_map`
        return given.keys() == returned.keys() and all(_alike(part, returned[name]) for name, part in given.items())
    if isinstance(given, tuple | list):  # the rest is slower
        return type(given) is type(returned) and len(given) == len(returned) and all(map(_alike, given, returned))
    leaves, structure = tree_flatten(given)
    others, same = tree_flatten(returned)
    return structure == same and not structure.is_leaf() and all(map(_alike, leaves, others))


def shape_of(leaf: Any) -> Any:
    """Returns the shape of a tensor, or the type of something else, for messages."""
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__


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
