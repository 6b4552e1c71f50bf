"""The dtypes of leaves: of all that hold floating-point numbers, or of each leaf by its key."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lit_tbptt.data.sequences.leaves import Key
from lit_tbptt.errors import InputError

Dtype: TypeAlias = torch.dtype | str
DtypeChoice: TypeAlias = Dtype | Mapping[Key, Dtype]


class Dtypes:
    """Converts leaves: floating-point ones to one dtype, and those that are named to their own.

    Args:
        given: The dtype of all floating-point leaves, or its name; or a dtype by the key of a leaf in an item, for
            integers too. Floating-point leaves without one become float32, and other leaves keep theirs.

    Attributes:
        by_key: The dtypes of leaves that are named.

    Raises:
        InputError: There is no such dtype, or an integer one is given for all floating-point leaves.
    """

    def __init__(self, given: DtypeChoice | None = None) -> None:
        named = given if isinstance(given, Mapping) else {}
        self.by_key: dict[Key, torch.dtype] = {key: _dtype(dtype, f"[{key!r}]") for key, dtype in named.items()}
        self._floating = torch.float32 if given is None or given is named else _dtype(given, "")
        if not self._floating.is_floating_point:
            raise InputError(
                f"dtypes={given}: of all floating-point leaves, so it must be a floating-point dtype; to convert "
                "others, name them, as in {'label': 'int64'}"
            )
        self._kept = {self._floating, *self.by_key.values()}

    def of_key(self, key: Key, leaf: Tensor) -> Tensor:
        """Returns a leaf of an item in the dtype of its key.

        Raises:
            InputError: It holds NaN, and would become a leaf of integers.
        """
        dtype = self.by_key.get(key)
        if dtype is None or dtype == leaf.dtype:
            return leaf if dtype is not None else self._as_floating(leaf)
        if leaf.is_floating_point() and not dtype.is_floating_point and bool(leaf.isnan().any()):
            raise InputError(
                f"the leaf {key!r} holds missing values (NaN), which dtypes[{key!r}]={_name(dtype)} cannot represent: "
                "fill them with a number in the dataset, and give a mask that is false there"
            )
        return leaf.to(dtype)

    def of_window(self, leaf: Any) -> Any:
        """Returns what was selected of an item in the dtype of floating-point leaves, unless a key has its dtype."""
        return leaf if not isinstance(leaf, Tensor) or leaf.dtype in self._kept else self._as_floating(leaf)

    def _as_floating(self, leaf: Tensor) -> Tensor:
        return leaf.to(self._floating) if leaf.is_floating_point() else leaf


def _dtype(given: Any, key: str) -> torch.dtype:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype):
        raise InputError(
            f"dtypes{key}={given!r}: must be a torch dtype or its name, such as float32, float64 or int64; or such "
            "dtypes by the keys of leaves"
        )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
