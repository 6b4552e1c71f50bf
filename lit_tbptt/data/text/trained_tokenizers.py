"""Tokenizers that the `tokenizers` library trains on the training split: words, and byte pairs."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from threading import Event
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lit_tbptt.data.text.tokenizers import EOS, UNKNOWN, LibraryTokenizer

# The 256 bytes and <eos>.
FEWEST_BYTE_PAIRS = 257
BYTE_PAIRS = 4096
# More text hardly makes better pairs: docs/log.md has figures.
_SAMPLE_BYTES_PER_TOKEN = 2048
# Characters. The library's time grows with the square of the longest run without white space.
_PIECE = 1024
# Characters. The library takes up to 100 bytes of memory per character, one core per text, and no Ctrl-C.
_PART = 1 << 20
_PARTS_AT_ONCE = 8
# Places where a piece of text ends under all rules here, whatever follows: the ids on both sides stay as they are.
_CUT = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")


class _TrainedTokenizer(LibraryTokenizer):
    """Encodes a long text in parts, with the same ids."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if all(len(text) <= _PART for text in texts):
            return super().encode(texts)
        return [np.concatenate(self._encode_parts(text)) for text in texts]

    def _encode_parts(self, text: str) -> list[np.ndarray]:
        parts, ids = list(_parts(text, _PART)), [np.empty(0, np.int64)]
        for start in range(0, len(parts), _PARTS_AT_ONCE):
            ids += super().encode(parts[start : start + _PARTS_AT_ONCE])
        return ids


class WordTokenizer(_TrainedTokenizer):
    """Splits at white space; an `<eos>` after every line, `<unk>` for words that are not in the training split."""

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_limit: int | None = None) -> "WordTokenizer":
        counting = cls._library(models.WordLevel())
        trainer = trainers.WordLevelTrainer(vocab_size=2**31 - 1, show_progress=False)
        _train(counting, trainer, (part for text in texts for part in _parts(text, _PIECE)))
        counted = counting.get_vocab()
        words = [word for word in sorted(counted, key=counted.__getitem__) if word not in (EOS, UNKNOWN)]
        kept = [EOS, UNKNOWN, *words][:vocabulary_limit]
        return cls("word", cls._library(models.WordLevel({word: i for i, word in enumerate(kept)}, UNKNOWN)))

    @staticmethod
    def _library(model: models.WordLevel) -> hf.Tokenizer:
        library = hf.Tokenizer(model)
        library.normalizer = normalizers.Replace("\n", f" {EOS} ")
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return library

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        # A line break becomes an <eos>, so the last line of a document ends it, and an empty document is a blank line.
        return self.encode([text.removesuffix("\n") + "\n" for text in texts])

    def num_unknown(self, texts: Sequence[str], documents: Sequence[np.ndarray]) -> int:
        # An <unk> written in the text itself, as in prepared corpora, stands for these five bytes.
        written = sum(text.split().count(UNKNOWN) for text in texts if UNKNOWN in text)
        return super().num_unknown(texts, documents) - written


class BytePairTokenizer(_TrainedTokenizer):
    """Merges the most frequent pairs of bytes into tokens (Sennrich et al. 2016), within GPT-2's pieces of text.

    The vocabulary has all 256 bytes, so it covers every text, and decoding restores it. An `<eos>` that is written in
    a text is text.

    Args:
        library: The library's object, trained.
        num_bytes: The bytes of the text that it was trained on.
    """

    def __init__(self, library: hf.Tokenizer, num_bytes: int) -> None:
        super().__init__("bpe", library)
        self.num_bytes = num_bytes
        self._take_special_tokens_as_text()

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_limit: int | None = None) -> "BytePairTokenizer":
        """Trains on a sample of the texts, pieces of them at even distances.

        Pairs that occur once are not merged, so a small corpus gives a smaller vocabulary than the limit.

        Args:
            texts: The texts.
            vocabulary_limit: Maximum vocabulary size, 257 or more. None: 4,096.
        """
        limit = vocabulary_limit or BYTE_PAIRS
        sample = _spread(_pieces(texts), sample_bytes(limit))
        library = hf.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            # And <eos>. There are never more, and the library allocates memory for as many.
            vocab_size=min(limit - 1, 256 + _num_bytes(sample)),
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        _train(library, trainer, sample)
        return cls(library, _num_bytes(sample))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"num_bytes": self.num_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take_special_tokens_as_text()

    def _take_special_tokens_as_text(self) -> None:
        self.library.encode_special_tokens = True  # the library neither saves nor copies it


def sample_bytes(vocabulary_limit: int | None) -> int:
    """Returns the most bytes of text that a `BytePairTokenizer` is trained on."""
    return (vocabulary_limit or BYTE_PAIRS) * _SAMPLE_BYTES_PER_TOKEN


def first_bytes(batches: Iterable[list[str]], num_bytes: int) -> Iterator[list[str]]:
    """Yields batches of texts up to a number of bytes, cutting the last text, and reads no further.

    Raises:
        UnicodeEncodeError: A text contains half of a surrogate pair.
    """
    for batch in batches:
        taken = []
        for text in batch:
            piece = text.encode()[:num_bytes]
            taken.append(piece.decode(errors="ignore"))
            num_bytes -= len(piece)
            if not num_bytes:
                break
        yield taken
        if not num_bytes:
            return


def _train(library: hf.Tokenizer, trainer: Any, texts: Iterable[str]) -> None:
    # The library counts in its own threads, and the calling thread would notice Ctrl-C only at the end.
    interrupted = Event()
    with ThreadPoolExecutor(1) as pool:
        read = takewhile(lambda text: not interrupted.is_set(), texts)
        try:
            pool.submit(library.train_from_iterator, read, trainer).result()
        finally:
            interrupted.set()


def _parts(text: str, length: int) -> Iterator[str]:
    """Yields a text in parts of a number of characters, or more if there is no place to cut."""
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + length)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _PIECE):
            yield text[start : start + _PIECE]


def _spread(pieces: Iterable[str], num_bytes: int) -> list[str]:
    """Returns every piece, or every second, fourth ... one, so that they have no more bytes together."""
    kept: list[str] = []
    distance, size = 1, 0
    for number, piece in enumerate(pieces):
        if number % distance:
            continue
        kept.append(piece)
        size += len(piece.encode())
        while size > num_bytes and len(kept) > 1:
            kept, distance = kept[::2], 2 * distance
            size = _num_bytes(kept)
    return kept


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
