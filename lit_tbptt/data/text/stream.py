"""Streams a corpus: reads and tokenizes the documents of a set of shards, starting at any position."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

import lit_tbptt.data.process_end  # noqa: F401 - makes the process wait for reads at exit
from lit_tbptt.data.text.documents import rows_per_read, text_rows
from lit_tbptt.data.text.network import read_with_retries
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError


@dataclass(frozen=True)
class DocumentStream:
    """One split of a corpus, to be read by one or more readers.

    Attributes:
        documents: The dataset, with one column.
        split: Its name.
        rows_per_read: Rows that a reader requests at once.
        first_document_hash: SHA-256 of the first document, which identifies the corpus.
    """

    documents: IterableDataset
    split: str
    rows_per_read: int
    first_document_hash: str

    @property
    def num_shards(self) -> int:
        return self.documents.num_shards


def document_stream(documents: IterableDataset, split: str) -> DocumentStream:
    """Makes the stream of a split, after reading its first documents.

    Raises:
        InputError: There are no documents, or they are shuffled in a buffer.
        SourceError: They cannot be read.
    """
    if _has_shuffle_buffer(documents):
        raise InputError(
            f"data.path: the {split} split goes through IterableDataset.shuffle, whose buffer is lost when a run is "
            "resumed; leave it out, and set data.shuffle to read the shards in another order in every epoch"
        )

    def look() -> tuple[IterableDataset, int, Mapping[str, Any] | None]:
        resharded = documents.reshard()  # a parquet file becomes as many shards as it has row groups
        return resharded, rows_per_read(resharded), next(resharded.iter(1), None)

    resharded, rows, first = read_with_retries(look, f"the start of the {split} split")
    if first is None:
        raise InputError(f"data.path: the {split} split has no documents")
    (text,) = text_rows(first, 0, f"the {split} split")
    return DocumentStream(resharded, split, rows, hashlib.sha256(text.encode(errors="replace")).hexdigest())


class TextReader:
    """Reads the texts of one set of shards in batches, and keeps track of its position.

    Args:
        stream: The split.
        reader: The number of this reader.
        num_readers: The number of readers that share the shards.
        epoch: The number of the epoch.
        shuffle_seed: Seed for shuffling the shards differently in every epoch. None: the original order.
        position: The result of `position` of a reader with the same arguments. None: the start.
    """

    def __init__(
        self,
        stream: DocumentStream,
        reader: int = 0,
        num_readers: int = 1,
        *,
        epoch: int = 0,
        shuffle_seed: int | None = None,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        self.stream = stream
        self.reader = reader
        self.num_readers = num_readers
        self.epoch = epoch
        self.shuffle_seed = shuffle_seed
        # The number of restarts, the state of the dataset, and the rows read since the (re)start.
        self._position: dict[str, Any] = {"pass": 0, "dataset": None, "num_rows": 0} | dict(position or {})
        self._dataset = stream.documents
        self._batches: Iterator[Mapping[str, Any]] | None = None

    def position(self) -> dict[str, Any]:
        """Returns the position before the next text, as plain values."""
        return self._position

    def read(self) -> list[str] | None:
        """Returns the next texts, or None at the end.

        Raises:
            InputError: A row is not text.
            SourceError: They cannot be read.
        """
        row = self._position["num_rows"]
        batch = read_with_retries(self._fetch, f"after row {row} of {self}")
        if batch is None:
            return None
        texts = text_rows(batch, row, str(self))
        self._position = self._position | {"dataset": self._dataset.state_dict(), "num_rows": row + len(texts)}
        return texts

    def start_again(self) -> None:
        """Restarts the stream, with the number of the next epoch."""
        self._position = {"pass": self._position["pass"] + 1, "dataset": None, "num_rows": 0}
        self._batches = None

    def __str__(self) -> str:
        return f"reader {self.reader} of the {self.stream.split} split"

    def _fetch(self) -> Mapping[str, Any] | None:
        # After an error there is no iterator, and a new one starts after the last rows read.
        batches, self._batches = self._batches, None
        if batches is None:
            batches = self._open()
        batch = next(batches, None)
        self._batches = batches
        return batch

    def _open(self) -> Iterator[Mapping[str, Any]]:
        here = self._position
        dataset = split_dataset_by_node(self.stream.documents, self.reader, self.num_readers, strategy="shards")
        if self.shuffle_seed is not None:
            # `datasets` shuffles the shards by the number of the epoch alone, and not in epoch 0.
            numbers = np.random.SeedSequence([self.shuffle_seed, self.epoch + here["pass"]])
            dataset.set_epoch(1 + int(numbers.generate_state(1)[0]))
        if here["dataset"] is not None:
            dataset.load_state_dict(here["dataset"])
        self._dataset = dataset
        return dataset.iter(self.stream.rows_per_read)


class Document(NamedTuple):
    """The ids of a document including its `<eos>`, its bytes in UTF-8, and its number of unknown tokens."""

    ids: np.ndarray
    num_bytes: int
    num_unknown: int


class DocumentReader:
    """Iterates over the tokenized documents of a reader; documents without tokens are skipped.

    Args:
        texts: The reader of the texts, at the start or at the position in `position["texts"]`.
        tokenizer: The tokenizer.
        repeat: Whether to restart at the end, endlessly, unless there are no documents at all.
        position: The result of `position`. None: the start.

    Attributes:
        num_empty: Documents skipped so far.
    """

    def __init__(
        self,
        texts: TextReader,
        tokenizer: Tokenizer,
        repeat: bool = False,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        self.repeat = repeat
        self._dtype = np.min_scalar_type(tokenizer.vocabulary_size - 1)
        self.num_empty = 0
        self._num_documents = 0  # since the start, to detect a stream without any
        self._documents: list[Document] = []
        self._taken = 0
        self._here: dict[str, Any] = {"texts": texts.position(), "num_documents": 0, "num_empty": 0}
        if position is not None:
            self._num_documents, self.num_empty = position["num_documents"], position["num_empty"]
            self._read()
            self._taken = position["taken"]

    def position(self) -> dict[str, Any]:
        """Returns the position before the next document, as plain values."""
        return self._here | {"taken": self._taken}

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        while self._taken == len(self._documents):
            if not self._read():
                raise StopIteration
        self._taken += 1
        return self._documents[self._taken - 1]

    def _read(self) -> bool:
        """Reads the next documents and returns whether there may be more."""
        here = self.texts.position()
        self._here = {"texts": here, "num_documents": self._num_documents, "num_empty": self.num_empty}
        texts = self.texts.read()
        if texts is None:
            self._documents, self._taken = [], 0
            again = self.repeat and self._num_documents > 0
            if again:
                self.texts.start_again()
                self._num_documents = 0
            return again
        try:
            self._documents = [
                Document(
                    ids.astype(self._dtype, copy=False), len(text.encode()), self.tokenizer.num_unknown([text], [ids])
                )
                for ids, text in zip(self.tokenizer.encode_documents(texts), texts, strict=True)
                if len(ids)
            ]
        except UnicodeEncodeError as error:
            raise InputError(
                f"one of the {len(texts)} rows after row {here['num_rows']} of {self.texts}: {error}; clean the texts, "
                "or leave such rows out"
            ) from error
        self._taken = 0
        self._num_documents += len(self._documents)
        self.num_empty += len(texts) - len(self._documents)
        return True


def _has_shuffle_buffer(documents: IterableDataset) -> bool:
    # `datasets` has no public API for this, and its state does not show the buffer.
    waiting = [documents._ex_iterable]
    while waiting:
        part = waiting.pop()
        if type(part).__name__ == "BufferShuffledExamplesIterable":
            return True
        waiting += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    return False
