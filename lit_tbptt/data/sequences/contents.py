"""A checksum of a dataset's contents, by which a resumed run notices other data of the same lengths."""

from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from lit_tbptt.data.sequences.dataset import reading
from lit_tbptt.data.sequences.leaves import all_keys, as_tensor, map_leaves, num_time_steps

if TYPE_CHECKING:
    from lit_tbptt.data.sequences.source import SequenceSource

_MOST_ITEMS = 16


def contents(source: "SequenceSource") -> str:
    """Describes the first and the last time step of some items, evenly spaced over the dataset.

    They are read before `transform` and the functions that select leaves, and the same on every rank.

    Args:
        source: Reads the dataset.

    Returns:
        A checksum; or that there is none, if the first item is read twice with different values.
    """
    numbers = np.unique(np.linspace(0, len(source.lengths) - 1, _MOST_ITEMS).astype(int)).tolist()
    checksum = _of_item(source, numbers[0])
    if _of_item(source, numbers[0]) != checksum:
        return "contents that differ at every reading"
    for number in numbers[1:]:
        checksum = crc32(f"{_of_item(source, number)}".encode(), checksum)
    return f"contents {checksum:08x}"


def _of_item(source: "SequenceSource", number: int) -> int:
    item, length = source.open(number), int(source.lengths[number]) + source.shift
    checksum = 0

    def add(leaf: Any) -> None:
        nonlocal checksum
        if num_time_steps(leaf) == length:
            for times in (slice(0, 1), slice(length - 1, length)):
                values = as_tensor(leaf[times])
                shown = f"{values.dtype} {tuple(values.shape)}".encode()
                checksum = crc32(_bytes(values), crc32(shown, checksum))

    for key in all_keys(item):
        try:
            with reading(number):
                map_leaves(add, item[key])
        except (TypeError, ValueError):
            continue  # strings, or lists of unequal lengths, which are refused when they are an input
    return checksum


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
