"""Makes sure that the leaves of all items have the same names, kinds and shapes."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from lit_tbptt.data.sequences.leaves import flatten
from lit_tbptt.errors import InputError


class Kinds:
    """The kinds of leaves that the first item has, which those of all others must have."""

    def __init__(self) -> None:
        self._kinds: list[tuple[str, tuple[int, ...]]] = []
        self._specification: list[str] | None = None

    def check(self, number: int, parts: Mapping[str, Any]) -> None:
        """Compares an item with the first.

        Args:
            number: The number of the item.
            parts: Some of its time steps by name: inputs and targets, or None.

        Raises:
            InputError: It has other leaves.
        """
        given = {name: part for name, part in parts.items() if part is not None}
        kinds = [kind_of(leaf) for part in given.values() for leaf in flatten(part)]
        if kinds == self._kinds:
            return
        specification = [
            "{} is {} of {} a time step".format(f"{name}{path_name(path)}", *kind_of(leaf))
            for name, part in given.items()
            for path, leaf in tree_flatten_with_path(part)[0]
        ]
        if self._specification is None:
            self._kinds, self._specification = kinds, specification
        if specification != self._specification:
            pairs = zip_longest(specification, self._specification, fillvalue="there is no other leaf")
            ours, theirs = next((mine, first) for mine, first in pairs if mine != first)
            raise InputError(
                f"item {number}: {ours}, where in the items before {theirs}: all items must have the same leaves"
            )


def has_length(leaf: Any, num_time_steps: int) -> bool:
    """Returns whether a leaf is a tensor of this number of time steps."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == num_time_steps


def as_mask(mask: Any, number: int) -> Tensor:
    """Returns the mask of an item as bool.

    Raises:
        InputError: It is not one leaf `[time]` of bool or of integers 0 and 1.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 1:
        raise InputError(f"item {number}: the mask must be one leaf, [time]")
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(
            f"item {number}: the mask is {mask.dtype}: must be bool, or integers 0 and 1; convert it in the dataset "
            "or in a function, such as mask=lambda part: part['weight'] > 0; weights for the loss belong to the targets"
        )
    if mask.dtype != torch.bool and bool((wrong := (mask != 0) & (mask != 1)).any()):
        raise InputError(
            f"item {number}: the mask has the value {int(mask[wrong][0])}: must be bool, or integers 0 and 1"
        )
    return mask.bool()


def kind_of(leaf: Tensor, axes: int = 1) -> tuple[str, tuple[int, ...]]:
    """Returns what all items have in common: the dtype, unless it is floating-point, and the shape after `axes`."""
    return "floating-point" if leaf.is_floating_point() else str(leaf.dtype), tuple(leaf.shape[axes:])


def check_static(number: int, static: Any) -> None:
    """Refuses NaN and infinity in what belongs to a whole sequence.

    Raises:
        InputError: A leaf of this item has one; the message has its path.
    """
    for path, leaf in tree_flatten_with_path(static)[0]:
        if not is_finite(leaf):
            raise InputError(
                f"item {number}: static{path_name(path)} is {value_name(leaf[~leaf.isfinite()][0])}: fill missing "
                "values in the dataset or in a function of static="
            )


def is_finite(leaf: Tensor) -> bool:
    """Returns whether no value is NaN or infinite."""
    if not leaf.is_floating_point():
        return True
    if leaf.dtype not in (torch.float32, torch.float64) or leaf.device.type != "cpu":
        return bool(leaf.isfinite().all())
    # By numpy: torch would share the work out to threads, which then take the cores from training while they wait.
    return bool(np.isfinite(leaf.detach().numpy()).all())


def value_name(value: Tensor) -> str:
    """Returns what a number is called that is NaN or infinite."""
    return "NaN" if bool(value.isnan()) else f"{float(value)}"


def path_name(path: Any) -> str:
    """Returns the place of a leaf, as Python would write it."""
    return "".join(f"[{getattr(entry, 'key', getattr(entry, 'idx', entry))!r}]" for entry in path)


def whole_numbers(lengths: Sequence[int]) -> np.ndarray:
    """Returns the argument `lengths` as an array.

    Raises:
        InputError: It is not one of whole numbers.
    """
    given = np.asarray(lengths)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InputError(f"lengths={lengths!r}: must be whole numbers, the time steps of every item")
    return given.astype(np.int64)
