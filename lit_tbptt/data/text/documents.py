"""Hugging Face datasets to splits of documents: the one place that finds a corpus."""

import codecs
import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from lit_tbptt.data.text.network import refuse_lossy_retries, storage_options
from lit_tbptt.errors import InputError

Source: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
# A stored dataset that is to be streamed has no files that could be its shards.
_STORED_SHARDS = 256
# Not part of the default corpus: what is installed beside the library, its tests, and two large old programs.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "__pycache__"}


def load_documents(
    source: str | Source | None,
    name: str | None = None,
    text_column: str = "text",
    val_fraction: float = 0.05,
    split_salt: str = "lit_tbptt",
    load_options: Mapping[str, Any] | None = None,
    streaming: bool = False,
) -> dict[str, Any]:
    """Finds a corpus and returns its splits, each a dataset with one column, the text.

    A dataset without a validation split gives the last `val_fraction` of its training split to it: of the documents,
    or of the characters where there is one document. A stream has no last documents, and gives none.

    Args:
        source: A name on the Hugging Face Hub; a folder, or a file: text, parquet, JSON lines, CSV; a folder that
            `save_to_disk` wrote; a dataset. None: the source code of Python's standard library.
        name: The dataset's configuration, where it has several.
        text_column: The column that holds the text.
        val_fraction: Share of the training split for validation, where the dataset has none.
        split_salt: Decides which files of the default corpus are held out.
        load_options: Further arguments of `datasets.load_dataset`, such as `encoding_errors` or `data_files`.
        streaming: Whether the documents are to be read as they are needed.

    Returns:
        `train`, `validation` and `test`, as far as they exist: each a `Dataset`, or an `IterableDataset` where they
        are streamed.

    Raises:
        InputError: The corpus, its column or its split is not there, or its text cannot be read.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"data.val_fraction={val_fraction}: must be at least 0 and below 1")
    if source is None or isinstance(source, str):
        found = _load(source, name, split_salt, dict(load_options or {}) | ({"streaming": True} if streaming else {}))
    else:
        found = source
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
    if not splits:
        raise InputError(f"data.path={source!r}: has the splits {', '.join(by_name)}, and none of {', '.join(SPLITS)}")
    if not streaming and "validation" not in splits and "train" in splits and val_fraction:
        splits["train"], splits["validation"] = _hold_out(splits["train"], val_fraction)
    return splits


def texts(documents: Dataset) -> Iterator[list[str]]:
    """Yields the documents in order, some megabytes at a time.

    Raises:
        InputError: A row holds no text.
    """
    first = 0
    for batch in documents.iter(rows_per_read(documents)):
        column = text_rows(batch, first, "the corpus")
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
    """Returns a number of rows that is read at once without much memory: some megabytes, at most 1000 rows.

    The rows of a stream are judged by its first ones, and are fewer, for there may be many readers.
    """
    if isinstance(documents, Dataset):
        total, count, most = documents.data.nbytes, len(documents), 4 << 20
    else:
        sizes = [len(str(value)) for batch in islice(documents.iter(1), 8) for (value,) in batch.values()]
        total, count, most = sum(sizes), len(sizes), 1 << 20
    return max(1, min(1000, most * count // max(1, total)))


def standard_library(salt: str) -> dict[str, list[str]]:
    """Lists the files of Python's standard library by split, about 90, 5 and 5 in 100.

    A file's split depends on its path relative to the library and on `salt` alone.
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
        return _read("text", None, options | {"data_files": standard_library(salt)}, "Python's standard library")
    if path.startswith("<"):
        raise InputError(f"data.path={path!r}: the data were handed over from Python; say where they are now")
    local = Path(path)
    if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
        return datasets.load_from_disk(path)
    if not local.is_file():
        return _read(path, name, options, path)
    folder, within = str(local.resolve().parent), options | {"data_files": local.name}
    try:
        _builder(folder, name, within)
    except FileNotFoundError:  # a file whose name does not tell its format is text
        return _read("text", name, options | {"data_files": str(local)}, path)
    return _read(folder, name, within, path)


def _builder(path: str, name: str | None, options: Mapping[str, Any]) -> datasets.DatasetBuilder:
    return datasets.load_dataset_builder(path, name, **{key: options[key] for key in options if key != "streaming"})


def _read(path: str, name: str | None, options: dict[str, Any], shown: str) -> DatasetDict | IterableDatasetDict:
    builder = None
    try:
        builder = _builder(path, name, options)
        if hasattr(builder.config, "sample_by") and "sample_by" not in options:
            # A text file is one document, line breaks and all, unless the user asks for lines.
            options = options | {"sample_by": "document"}
        if options.get("streaming"):
            if hasattr(builder.config, "sample_by"):
                refuse_lossy_retries()
            options = options | {"storage_options": storage_options() | (options.get("storage_options") or {})}
        return datasets.load_dataset(path, name, **options)
    except datasets.exceptions.DataFilesNotFoundError as error:
        raise InputError(f"data.path={shown!r}: there are no data files that are known ({error})") from error
    except (FileNotFoundError, ConnectionError) as error:
        raise InputError(
            f"data.path={shown!r}: no such file or folder here, and no such dataset on the Hugging Face Hub, or the "
            f"Hub cannot be reached ({error})"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UnicodeDecodeError) and builder is not None:
            raise InputError(_undecodable(builder.config.data_files, error.__cause__)) from error
        raise InputError(f"data.path={shown!r}: cannot be read ({error.__cause__ or error})") from error
    except ValueError as error:
        raise InputError(f"data.path={shown!r}, data.name={name!r}, data.load_options={options}: {error}") from error


def _undecodable(data_files: Mapping[str, list[str]] | None, error: UnicodeDecodeError) -> str:
    advice = "convert it, or set data.load_options.encoding_errors to replace or ignore"
    for file in (file for files in (data_files or {}).values() for file in files):
        if not Path(file).is_file():
            continue
        decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
        with open(file, "rb") as stream:
            try:
                while chunk := stream.read(1 << 20):
                    waiting = len(decoder.getstate()[0])
                    decoder.decode(chunk)
                    read += len(chunk)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError as found:
                place = read - waiting + found.start
                return f"{file}: byte {place} is not UTF-8 text ({found.reason}); {advice}"
    return f"the corpus is not UTF-8 text ({error}); {advice}"


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


def _hold_out(documents: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    if len(documents) == 1:
        ((column, text),) = documents[0].items()
        cut = len(text) - round(len(text) * fraction)
        return Dataset.from_dict({column: [text[:cut]]}), Dataset.from_dict({column: [text[cut:]]})
    cut = len(documents) - max(1, round(len(documents) * fraction)) if len(documents) else 0
    return documents.select(range(cut)), documents.select(range(cut, len(documents)))
