"""Reads Hugging Face datasets of sequences through Arrow: reading a stretch of a row costs as much as the stretch."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_tbptt.errors import InputError


class ArrowSequences:
    """The rows of a `datasets.Dataset`; list and array columns are leaves with a time axis.

    Indexing the dataset itself would convert a whole row to Python objects.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._tables = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> "ArrowRow":
        return ArrowRow(self, number, self._tables[number])

    def num_time_steps(self, name: str) -> np.ndarray:
        """Returns the length of every row's list in a column.

        Raises:
            InputError: The column has no lists.
        """
        if not _is_list(self.dataset.data.schema.field(name).type):
            raise InputError(
                f"the column {name!r} has the type {self.dataset.features[name]}: it has no time axis; a row is a "
                "whole sequence, whose columns are lists or arrays, as in parquet and JSON lines (CSV has no lists)"
            )
        column = self._tables.select_columns(name)
        lengths = [_lengths(table.column(name)) for table in column.iter(batch_size=1000)]
        return np.concatenate(lengths).astype(np.int64)


class ArrowRow(Mapping):
    """A row of a dataset: its columns by name."""

    def __init__(self, rows: ArrowSequences, number: int, table: pa.Table) -> None:
        self._rows, self._number, self._table = rows, number, table

    def __getitem__(self, name: str) -> Any:
        if name not in self._table.column_names:
            raise KeyError(name)
        array = _storage(self._table.column(name).chunk(0))
        if _is_list(array.type):
            return ArrowLeaf(array[0].values)
        if pa.types.is_struct(array.type):  # of a feature that is decoded, such as Image
            return self._rows.dataset[self._number][name]
        return array[0].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


class ArrowLeaf:
    """A list in a row (or nested lists of equal lengths), converted to an array when it is sliced."""

    def __init__(self, values: pa.Array) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int]:
        return (len(self._values),)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, times: slice) -> np.ndarray:
        start, stop, _ = times.indices(len(self))
        return _as_numpy(self._values.slice(start, max(0, stop - start)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)  # a copy: what a dataset maps cannot be written to


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_list(kind: pa.DataType) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    chunks = [pc.fill_null(pc.list_value_length(_storage(chunk)), 0) for chunk in column.chunks]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks] or [np.zeros(0, np.int64)])


def _as_numpy(values: pa.Array) -> np.ndarray:
    values = _storage(values)
    if not _is_list(values.type):
        return values.to_numpy(zero_copy_only=False)
    lengths = set(_lengths(pa.chunked_array([values])).tolist())
    if len(lengths) > 1:
        raise InputError(
            f"a list inside a list has from {min(lengths)} to {max(lengths)} elements: all must have the same"
        )
    inner = _as_numpy(values.flatten())
    return inner.reshape(len(values), max(lengths, default=0), *inner.shape[1:])
