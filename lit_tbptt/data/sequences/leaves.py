"""Selects leaves of an item, by key or by a function, and slices their time steps as tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lit_tbptt.errors import InputError

Key = str | int
Selector = Key | Sequence[Key] | Callable[[Any], Any]
"""A leaf of an item; several, in a dictionary by these keys; or a function of an item's slice."""


def keys_of(*selectors: Selector | None) -> list[Key] | None:
    """Returns the keys that selectors name, each once. None: one of them is a function, which may use every leaf."""
    keys: dict[Key, None] = {}
    for selector in selectors:
        if callable(selector):
            return None
        if isinstance(selector, str | int):
            keys[selector] = None
        elif selector is not None:
            keys |= dict.fromkeys(selector)
    return list(keys)


def select(name: str, selector: Selector, part: Any) -> Any:
    """Applies the selector of this name to an item, or to a slice of one.

    Raises:
        InputError: It is a function that raises an error, or returns None.
    """
    if callable(selector):
        return call(name, selector, part)
    if isinstance(selector, str | int):
        return part[selector]
    return {key: part[key] for key in selector}


def call(name: str, function: Callable[..., Any], part: Any, *arguments: Any) -> Any:
    """Calls a function of the user on a slice of an item.

    Args:
        name: The argument that it was given as: `transform`, `inputs`, ...
        function: The function.
        part: The slice.
        *arguments: Further arguments of the function.

    Raises:
        InputError: It raises an error, or returns None.
    """
    try:
        result = function(part, *arguments)
    except InputError:
        raise
    except Exception as error:
        given = f" (it was called with the leaves {all_keys(part)})" if isinstance(error, KeyError) else ""
        raise InputError(f"{name} raised {type(error).__name__}: {error}{given}") from error
    if result is None:
        raise InputError(f"{name} returned None: the function must return the leaves")
    return result


def as_tensor(values: Any) -> Tensor:
    """Returns an array, a number or a tensor as a new tensor, which a user's function may write to.

    uint16 to uint64 become int64.
    """
    if isinstance(values, Tensor):
        return values.clone()
    array = np.array(values)  # a copy: a memory map may not be written to
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # of which torch can do little
        array = array.astype(np.int64)
    return torch.from_numpy(array)


def num_time_steps(leaf: Any) -> int | None:
    """Returns the first size of a leaf without reading its values. None: it has no axis."""
    if isinstance(leaf, list):
        return len(leaf)
    shape = getattr(leaf, "shape", ())
    return int(shape[0]) if shape else None


def first_size(part: Any) -> int | None:
    """Returns that of the first leaf of a group of leaves."""
    return num_time_steps(tree_leaves(as_dicts(part), is_leaf=is_list)[0])


def slice_item(
    item: Any,
    times: slice,
    static: Sequence[Key],
    keys: Sequence[Key] | int,
    convert: Callable[[Key, Tensor], Tensor] | None = None,
) -> Any:
    """Returns an item's leaves as tensors, cut to some of the time steps.

    Args:
        item: A dictionary or a tuple of leaves.
        times: The time steps.
        static: The leaves that have no time axis, and are returned whole.
        keys: The leaves that are wanted. A number: all of them, cut where they have this number of time steps.
        convert: Called with the key of each leaf and its values, which it may convert. None: nothing is.

    Returns:
        A dictionary by key; leaves that are nested in dictionaries and tuples stay so.
    """

    def cut(leaf: Any) -> Any:
        if isinstance(keys, int) and num_time_steps(leaf) != keys:
            return whole(leaf)
        return as_tensor(leaf[times])

    def whole(leaf: Any) -> Any:
        return leaf if leaf is None or isinstance(leaf, str | bytes) else as_tensor(leaf)

    wanted = all_keys(item) if isinstance(keys, int) else keys
    parts = {key: map_leaves(whole if key in static else cut, item[key]) for key in wanted}
    if convert is None:
        return parts

    def converted(key: Key) -> Any:
        return map_leaves(lambda leaf: convert(key, leaf) if isinstance(leaf, Tensor) else leaf, parts[key])

    return {key: converted(key) for key in parts}


def map_leaves(function: Callable[[Any], Any], part: Any) -> Any:
    """Returns dictionaries and tuples with `function` of every leaf, in less time than a general pytree takes."""
    if isinstance(part, Tensor | np.ndarray):
        return function(part)
    if type(part) is dict:
        return {name: map_leaves(function, inner) for name, inner in part.items()}
    return tree_map(function, part, is_leaf=is_list)


def flatten(part: Any) -> list[Any]:
    """Returns the leaves, in order."""
    if isinstance(part, Tensor):
        return [part]
    if type(part) is dict:
        return [leaf for inner in part.values() for leaf in flatten(inner)]
    return tree_leaves(part)


def is_list(part: Any) -> bool:
    """Tells whether something is a list, which is a leaf: of numbers, as the items of Hugging Face datasets have."""
    return isinstance(part, list)


def has_names(part: Any) -> bool:
    """Returns whether leaves are found in it by name: a dictionary, or a group of h5py or zarr."""
    return isinstance(part, Mapping) or hasattr(part, "keys")


def as_dicts(part: Any) -> Any:
    """Returns groups of leaves as dictionaries; a leaf, a dictionary and a tuple are returned as they are."""
    if isinstance(part, Tensor | np.ndarray | dict) or not has_names(part):
        return part
    return {name: as_dicts(part[name]) for name in part.keys()}  # noqa: SIM118 - all that a group may have


def all_keys(item: Any) -> list[Key]:
    """Returns the keys of an item.

    Raises:
        InputError: It is no dictionary and no tuple.
    """
    if has_names(item):
        return list(item.keys())
    if isinstance(item, tuple | list):
        return list(range(len(item)))
    raise InputError(f"an item is a {type(item).__name__}: it must be a dictionary or a tuple of leaves, or a tensor")
