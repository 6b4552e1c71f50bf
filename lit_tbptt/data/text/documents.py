"""Loads a corpus as splits of documents, from files, the Hugging Face Hub or Python objects."""

import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from lit_tbptt.data.text.files import has_card, local_files
from lit_tbptt.data.text.reading import read_dataset
from lit_tbptt.errors import InputError

logger = logging.getLogger(__name__)

Source: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_LONGEST_NAME = 255  # bytes, on every file system
# The share of the training split held out if a stored dataset has no validation split.
_VAL_FRACTION = 0.05
NO_STREAM_IS_CUT = (
    "nothing is held out of a stream, whose end is not known; name some files valid or dev, or set "
    "data.load_options.data_files"
)
# The number of shards of a stored dataset that is streamed, which has no files to serve as shards.
_STORED_SHARDS = 256
# Not part of the default corpus: installed packages, tests, and two large old programs.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "__pycache__"}


def load_documents(
    source: Any = None,
    name: str | None = None,
    text_column: str = "text",
    val_fraction: float | None = None,
    split_salt: str = "lit_tbptt",
    load_options: Mapping[str, Any] | None = None,
    streaming: bool = False,
) -> dict[str, Any]:
    """Finds a corpus and returns its splits, each a dataset with one column, the text.

    If there is no validation split, the last `val_fraction` of the training split is held out: of its documents, or of
    its characters if there is one document. Nothing is held out of a stream, whose last documents are not known.

    Args:
        source: A name on the Hugging Face Hub; a folder, or a file: text, parquet, JSON lines, CSV; a folder that
            `save_to_disk` wrote; a dataset; a list of texts; a data frame or series of pandas or polars; a dict of
            these by split. None: the source code of Python's standard library.
        name: The dataset's configuration, where it has several.
        text_column: The column that holds the text.
        val_fraction: Share of the training split for validation, where the dataset has none. None: .05, and none of a
            stream.
        split_salt: Decides which files of the default corpus are held out.
        load_options: Further arguments of `datasets.load_dataset`, such as `encoding_errors` or `data_files`.
        streaming: Whether the documents are to be read as they are needed.

    Returns:
        `train`, `validation` and `test`, as far as they exist: each a `Dataset`, or an `IterableDataset` where they
        are streamed.

    Raises:
        InputError: The corpus, its column or its split is not there, its text cannot be read, or a share of a stream
            is to be held out.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise InputError(f"data.val_fraction={val_fraction}: must be at least 0 and below 1")
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if name is not None:
        _check_name(name, source)
    if source is None or isinstance(source, str):
        found = _load(source, name, split_salt, dict(load_options or {}) | ({"streaming": True} if streaming else {}))
    else:
        found = from_python(source, text_column)
    by_name = {"train": found} if isinstance(found, (Dataset, IterableDataset)) else dict(found)
    if not streaming and any(isinstance(documents, IterableDataset) for documents in by_name.values()):
        raise InputError("data.path is an IterableDataset, with data.streaming=False: set data.streaming to true")
    if streaming:
        by_name = {split: _streamed(documents, split) for split, documents in by_name.items()}
    splits: dict[str, Any] = {}
    for split, names in SPLITS.items():
        for candidate in names:
            if candidate in by_name:
                splits[split] = _text_only(by_name[candidate], text_column)
                break
    known = [candidate for names in SPLITS.values() for candidate in names]
    left_out = [split for split in by_name if split not in known]
    if splits and left_out:
        logger.warning("data: splits that are not used: %s; known names are %s", ", ".join(left_out), ", ".join(known))
    if not splits:
        raise InputError(f"data.path={source!r}: has the splits {', '.join(by_name)}, and none of {', '.join(SPLITS)}")
    if "train" in splits and "validation" not in splits:
        if streaming and val_fraction:
            raise InputError(
                f"data.val_fraction={val_fraction} with data.streaming=True, and no validation split: "
                f"{NO_STREAM_IS_CUT}, or leave data.val_fraction out to train without validation"
            )
        fraction = _VAL_FRACTION if val_fraction is None else val_fraction
        if fraction and not streaming:
            splits["train"], splits["validation"] = _hold_out(splits["train"], fraction, _shown(source))
    elif val_fraction is not None and "validation" in splits:
        logger.warning("data.val_fraction=%s is not used: the corpus has a validation split of its own", val_fraction)
    return splits


def _check_name(name: str, source: Any) -> None:
    """Raises InputError where a configuration is named, and the corpus is of a kind that has none."""
    if isinstance(source, str) and source not in _PACKAGED_DATASETS_MODULES:
        local = Path(source).expanduser()
        if not local.exists() or has_card(local):
            return
    raise InputError(
        f"data.name={name!r} with {_shown(source)}: it names a configuration of a dataset on the Hugging Face Hub; "
        "leave it out, or set it to null"
    )


def _shown(source: Any) -> str:
    """Returns what messages call the corpus."""
    if source is None:
        return "the default corpus"
    return f"data.path={source!r}" if isinstance(source, str) else "data in memory"


def from_python(given: Any, text_column: str) -> Any:
    """Makes datasets of texts in memory: a list, a data frame or series of pandas or polars, or a dict by split.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, Mapping):
        return {split: from_python(texts, text_column) for split, texts in given.items()}
    # By its names, so that neither library is imported for it.
    library, kind = type(given).__module__.partition(".")[0], type(given).__name__
    match library, kind:
        case "pandas", "DataFrame":
            return Dataset.from_pandas(given, preserve_index=False)
        case "polars", "DataFrame" | "LazyFrame":
            return Dataset.from_polars(given)
        case "pandas" | "polars", "Series":
            return from_python(given.to_list(), text_column)
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise InputError(
            f"data.path has the type {kind}: must be a name, a file or a folder, a dataset of Hugging Face, a list of "
            "texts, a data frame of pandas or polars, or a dict of these by split"
        )
    for number, text in enumerate(given):
        if not isinstance(text, str):
            raise InputError(f"data.path has the type {kind}, and its element {number} is {text!r}: must be a text")
    if given and os.path.isfile(given[0]):
        raise InputError(
            f"data.path is a {kind} of texts, and the first is the name of a file, {given[0]!r}: to read files, set "
            "path to text, and load_options to {'data_files': [...]}"
        )
    return Dataset.from_dict({text_column: list(given)})


def texts(documents: Dataset) -> Iterator[list[str]]:
    """Yields the documents in order, a few megabytes at a time.

    Raises:
        InputError: A row is not text.
    """
    first = 0
    for batch in documents.iter(rows_per_read(documents)):
        column = text_rows(batch, first, "its split of the corpus")
        yield column
        first += len(column)


def text_rows(batch: Mapping[str, list[Any]], first: int, of: str) -> list[str]:
    """Returns the texts of a batch of rows.

    Args:
        batch: The rows, of one column.
        first: The number of the first row.
        of: What the rows are of, for the message.

    Raises:
        InputError: A row holds no text.
    """
    ((column, values),) = batch.items()
    for row, text in enumerate(values, first):
        if not isinstance(text, str):
            raise InputError(
                f"row {row} of {of}: its column {column!r} holds {text!r}, and must hold text; choose another column "
                "with data.text_column, or leave such rows out"
            )
    return values


def rows_per_read(documents: Dataset | IterableDataset) -> int:
    """Returns how many rows to read at once: a few megabytes, at most 1000 rows.

    For a stream it is estimated from the first rows, and smaller, since there may be many readers.
    """
    if isinstance(documents, Dataset):
        total, count, most = documents.data.nbytes, len(documents), 4 << 20
    else:
        sizes = [len(str(value)) for batch in islice(documents.iter(1), 8) for (value,) in batch.values()]
        total, count, most = sum(sizes), len(sizes), 1 << 20
    return max(1, min(1000, most * count // max(1, total)))


def standard_library(salt: str) -> dict[str, list[str]]:
    """Lists the files of Python's standard library by split: about 90, 5 and 5 percent.

    The split of a file depends only on its path relative to the library and on `salt`.
    """
    root = Path(sysconfig.get_path("stdlib"))
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _NOT_LIBRARY.isdisjoint(relative.parts):
            digest = hashlib.sha256(f"{salt}:{relative.as_posix()}".encode()).digest()
            share = int.from_bytes(digest[:8], "big") / 2**64
            splits["train" if share < 0.9 else "validation" if share < 0.95 else "test"].append(str(path))
    if not all(splits.values()):
        raise InputError(f"the default corpus: {root} does not hold Python's library as files; give data.path")
    return splits


def _load(path: str | None, name: str | None, salt: str, options: dict[str, Any]) -> Source:
    if path is None:
        return read_dataset("text", None, options, "Python's standard library", {"data_files": standard_library(salt)})
    if not path:
        raise InputError("data.path='': names nothing; leave it out for the default corpus")
    if path.startswith("<"):
        raise InputError(f"data.path={path!r}: the data were handed over from Python; say where they are now")
    if "\n" in path or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.split("/")):
        raise InputError(f"data.path={path[:40]!r}...: this is no path; texts from Python are given in a list, [text]")
    local = Path(path).expanduser()
    if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
        return datasets.load_from_disk(local)
    if {"data_files", "data_dir"} & set(options):
        if local.is_file():
            raise InputError(
                f"data.path={path!r} is a file, and data.load_options names others: set data.path to the format of "
                "these, text, json, csv or parquet, or leave data_files and data_dir out"
            )
        return read_dataset(path, name, options, path)
    chosen = local_files(local, options.get("encoding"))
    if chosen is not None:
        return read_dataset(chosen[0], name, options, path, chosen[1])
    if local.is_file():
        return read_dataset(str(local.resolve().parent), name, options, path, {"data_files": escape(local.name)})
    return read_dataset(str(local) if local.is_dir() else path, name, options, path)


def _streamed(documents: Dataset | IterableDataset, split: str) -> IterableDataset:
    if isinstance(documents, Dataset):
        if not len(documents):
            raise InputError(f"data.path: the {split} split has no documents")
        return documents.to_iterable_dataset(max(1, min(_STORED_SHARDS, len(documents))))
    return documents


def _text_only(documents: Dataset | IterableDataset, column: str) -> Dataset | IterableDataset:
    # A stream may know its columns only when it is read.
    if documents.column_names is not None and column not in documents.column_names:
        raise InputError(
            f"data.text_column={column!r}: the dataset has no such column; it has {', '.join(documents.column_names)}"
        )
    return documents.select_columns([column])


def _hold_out(documents: Dataset, fraction: float, shown: str) -> tuple[Dataset, Dataset]:
    if len(documents) == 1:
        (column,), (text,) = documents.column_names, text_rows(documents[:1], 0, "the corpus")
        cut = len(text) - round(len(text) * fraction)
        if not text.strip():
            what = f"has no text, only {len(text)} blank characters" if text else "is empty"
            raise InputError(f"{shown}: it {what}; text to train on is needed")
        if not 0 < cut < len(text):
            raise InputError(
                f"{shown}: it has {len(text)} characters, too few to hold out data.val_fraction={fraction} of them for "
                "validation; give more text, or set data.val_fraction to 0"
            )
        return Dataset.from_dict({column: [text[:cut]]}), Dataset.from_dict({column: [text[cut:]]})
    cut = len(documents) - max(1, round(len(documents) * fraction)) if len(documents) else 0
    return documents.select(range(cut)), documents.select(range(cut, len(documents)))
