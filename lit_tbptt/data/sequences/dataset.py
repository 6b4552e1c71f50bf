"""What a dataset of sequences must be, and errors of file libraries that name the item."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_tbptt.data.sequences.leaves import has_names
from lit_tbptt.errors import InputError


def check_dataset(dataset: Any) -> None:
    """Refuses what has no sequences by number.

    Raises:
        InputError: The dataset is a tuple, a stream, a dictionary, a whole file, or empty.
    """
    if isinstance(dataset, tuple):
        raise InputError("the dataset is a tuple: give a list of sequences, such as [(inputs, targets)]")
    names = list(dataset.keys()) if has_names(dataset) else []
    if any(not isinstance(name, int) for name in names):
        raise InputError(
            f"the dataset is of the type {type(dataset).__name__}, with the names {str(names)[:60]}: its index must "
            "be a number; if each name is a sequence, give a list, such as [data[name] for name in data]"
        )
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"the dataset is of the type {type(dataset).__name__}: it must have len and an index; a stream has neither"
        )
    if not len(dataset):
        raise InputError("the dataset is empty: it needs at least one sequence")


@contextmanager
def reading(number: int) -> Iterator[None]:
    """Names the item that a file library cannot read, such as one whose file was closed.

    Raises:
        InputError: The library raises an error.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(f"item {number} cannot be read: {type(error).__name__}: {error}") from error
