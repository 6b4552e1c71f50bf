"""Tokenizers. Every document (with the word tokenizer, every line) is followed by one `<eos>`."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lit_tbptt.errors import InputError

EOS = "<eos>"
UNKNOWN = "<unk>"
BUILT_IN = ("byte", "char", "word")
# Names of the token between documents in other tokenizers, most specific first.
_EOS_NAMES = (EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "[SEP]")


class Tokenizer(ABC):
    """Maps documents to token ids.

    Attributes:
        name: The name that the user gave.
        vocabulary_size: Number of different ids.
        eos: The id of `<eos>`, which follows every document.
        unknown: The id of `<unk>`. None: the vocabulary covers every text.
    """

    name: str
    vocabulary_size: int
    eos: int
    unknown: int | None = None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, without the `<eos>` that ends a document."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text; an `<eos>` becomes a line break."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns plain values from which `from_description` rebuilds this tokenizer."""

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text and its `<eos>`; a text without ids is not a document and gets no `<eos>`."""
        return [np.append(ids, self.eos) if len(ids) else ids for ids in self.encode(texts)]

    def num_unknown(self, texts: Sequence[str], documents: Sequence[np.ndarray]) -> int:
        """Returns the number of tokens that stand for text outside the vocabulary.

        Args:
            texts: The texts.
            documents: The result of `encode_documents` for them.
        """
        if self.unknown is None:
            return 0
        return sum(int(np.count_nonzero(ids == self.unknown)) for ids in documents)


class ByteTokenizer(Tokenizer):
    """A vocabulary of the 256 bytes (text as UTF-8) and `<eos>`."""

    name = "byte"
    vocabulary_size = 257
    eos = 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ord("\n") if i == self.eos else i for i in ids).decode(errors="replace")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


class CharTokenizer(Tokenizer):
    """A vocabulary of the characters of the training split, `<eos>` and `<unk>`.

    Args:
        characters: The characters of the vocabulary, sorted, without duplicates.
    """

    name = "char"
    eos = 0
    unknown = 1

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocabulary_size = len(characters) + 2
        self._codes = np.array([ord(character) for character in characters], np.uint32)

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharTokenizer":
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(sorted(characters)))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(np.frombuffer(text.encode("utf-32-le"), np.uint32)) for text in texts]

    def _encode(self, codes: np.ndarray) -> np.ndarray:
        if not len(self._codes):
            return np.full(len(codes), self.unknown)
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        return np.where(self._codes[places] == codes, places + 2, self.unknown)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join({self.eos: "\n", self.unknown: "\ufffd"}.get(i) or self.characters[i - 2] for i in ids)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "characters": self.characters}


class LibraryTokenizer(Tokenizer):
    """Any tokenizer of the `tokenizers` library.

    Args:
        name: The name that the user gave.
        library: The library's object. A token `<eos>` is added if it has none with a known name.
    """

    def __init__(self, name: str, library: hf.Tokenizer) -> None:
        self.name = name
        self.library = library
        # A tokenizer file may enable truncation or padding to the length of a model.
        library.no_truncation()
        library.no_padding()
        known = [token for token in _EOS_NAMES if library.token_to_id(token) is not None]
        if not known:
            library.add_special_tokens([EOS])
        vocabulary = library.get_vocab(with_added_tokens=True)
        self.eos = vocabulary[known[0] if known else EOS]
        self.vocabulary_size = max(vocabulary.values()) + 1
        model = json.loads(library.to_str())["model"]
        self.unknown = vocabulary.get(model.get("unk_token"), model.get("unk_id"))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[list[int]] = [[]]
        for i in ids:
            if i == self.eos:
                parts.append([])
            else:
                parts[-1].append(i)
        return "\n".join(self.library.decode(part) for part in parts)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "json": self.library.to_str()}


class WordTokenizer(LibraryTokenizer):
    """Splits at white space; an `<eos>` after every line, `<unk>` for words that are not in the training split."""

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_limit: int | None = None) -> "WordTokenizer":
        counting = cls._library(models.WordLevel())
        trainer = trainers.WordLevelTrainer(vocab_size=2**31 - 1, show_progress=False)
        # The library counts in its own threads, and the calling thread would notice Ctrl-C only at the end.
        interrupted = Event()
        with ThreadPoolExecutor(1) as pool:
            read = takewhile(lambda text: not interrupted.is_set(), texts)
            try:
                pool.submit(counting.train_from_iterator, read, trainer).result()
            finally:
                interrupted.set()
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


def from_description(description: dict[str, Any]) -> Tokenizer:
    """Builds a tokenizer from the result of `describe`."""
    match description["name"]:
        case "byte":
            return ByteTokenizer()
        case "char":
            return CharTokenizer(description["characters"])
        case "word":
            return WordTokenizer("word", hf.Tokenizer.from_str(description["json"]))
        case name:
            return LibraryTokenizer(name, hf.Tokenizer.from_str(description["json"]))


def from_object(given: Any) -> Tokenizer:
    """Returns a `Tokenizer` unchanged, or wraps an object of the `tokenizers` library.

    Args:
        given: The object; also a fast tokenizer of `transformers`, which contains such an object.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(given, Tokenizer):
        return given
    library = getattr(given, "backend_tokenizer", given)
    if not isinstance(library, hf.Tokenizer):
        raise InputError(
            f"data.tokenizer has the type {type(given).__name__}: must be one of {', '.join(BUILT_IN)}, a file, a "
            "folder, a name on the Hugging Face Hub, a Tokenizer of lit_tbptt or of the tokenizers library, or a fast "
            "one of transformers"
        )
    copy = hf.Tokenizer.from_str(library.to_str())  # an <eos> may be added, which must not change the user's object
    return LibraryTokenizer(type(library.model).__name__, copy)


def make_tokenizer(name: str, train_texts: Iterable[str], vocabulary_limit: int | None = None) -> Tokenizer:
    """Creates a tokenizer by name.

    Args:
        name: `byte`, `char` or `word`; a `tokenizer.json` file, a folder with one, or a name on the Hugging Face Hub.
        train_texts: The training split, for tokenizers that take their vocabulary from it.
        vocabulary_limit: Maximum vocabulary size of `word`. None: every word of the training split.

    Raises:
        InputError: There is no such tokenizer, or its file is not one.
    """
    if vocabulary_limit is not None and (name != "word" or vocabulary_limit < 2):
        raise InputError(
            f"data.vocabulary_limit={vocabulary_limit} with data.tokenizer={name!r}: it limits the word tokenizer's "
            f"vocabulary, {EOS} and {UNKNOWN} included, and must be 2 or more"
        )
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        return CharTokenizer.train(train_texts)
    if name == "word":
        return WordTokenizer.train(train_texts, vocabulary_limit)
    return LibraryTokenizer(name, _load(name))


def _load(name: str) -> hf.Tokenizer:
    if not name:
        raise InputError(f"data.tokenizer='': names nothing; give {', '.join(BUILT_IN)}, a file, a folder or a name")
    path = Path(name)
    meant = get_close_matches(name, BUILT_IN)
    if meant and not path.exists():
        raise InputError(f"data.tokenizer={name!r}: did you mean {meant[0]}?")
    try:
        if path.is_dir():
            path = path / "tokenizer.json"
        if path.exists() or path.suffix == ".json":
            return hf.Tokenizer.from_file(str(path))
        return hf.Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises plain Exception
        raise InputError(
            f"data.tokenizer={name!r}: not one of {', '.join(BUILT_IN)}, nor a readable tokenizer.json, a folder with "
            f"one, or a name on the Hugging Face Hub ({error})"
        ) from error
