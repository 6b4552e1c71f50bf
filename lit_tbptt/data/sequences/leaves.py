"""What of an item is read: leaves by key or by a function, of a slice of the time steps, as tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

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


def select(selector: Selector, part: Any) -> Any:
    """Returns what a selector takes out of an item, or of a slice of one."""
    if callable(selector):
        return selector(part)
    if isinstance(selector, str | int):
        return part[selector]
    return {key: part[key] for key in selector}


def as_tensor(values: Any) -> Tensor:
    """Returns an array, a number or a tensor as a tensor that nobody else has; unsigned numbers become int64."""
    if isinstance(values, Tensor):
        return values
    array = np.array(values)  # a copy: a memory map may not be written to
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # of which torch can do little
        array = array.astype(np.int64)
    return torch.from_numpy(array)


def cast(leaf: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Casts floating-point numbers to `dtype`, or to float32."""
    return leaf.to(dtype or torch.float32) if leaf.is_floating_point() else leaf


def num_time_steps(leaf: Any) -> int:
    """Returns the first size of a leaf, without a look at what it holds."""
    shape = getattr(leaf, "shape", None)
    return int(shape[0]) if shape else len(leaf)


def slice_item(item: Any, keys: Sequence[Key], times: slice, static: Sequence[Key]) -> Any:
    """Returns an item's leaves as tensors, cut to some of the time steps.

    Args:
        item: A dictionary or a tuple of leaves.
        keys: The leaves that are wanted.
        times: The time steps.
        static: The leaves that have no time axis, and are returned whole.

    Returns:
        A dictionary by key; leaves that are nested in dictionaries and tuples stay so.
    """

    def cut(leaf: Any) -> Tensor:
        return as_tensor(leaf[times])

    return {key: tree_map(as_tensor if key in static else cut, item[key], is_leaf=_is_list) for key in keys}


def _is_list(part: Any) -> bool:
    return isinstance(part, list)  # of numbers, as Hugging Face's datasets have them


def all_keys(item: Any) -> list[Key]:
    """Returns the keys of an item.

    Raises:
        InputError: It is no dictionary and no tuple.
    """
    if isinstance(item, Mapping):
        return list(item)
    if isinstance(item, tuple | list):
        return list(range(len(item)))
    raise InputError(f"an item is a {type(item).__name__}: it must be a dictionary or a tuple of leaves, or a tensor")
