"""Tokenizers. Every document (with the word tokenizer, every line) is followed by one `<eos>`."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers as hf

EOS = "<eos>"
UNKNOWN = "<unk>"
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
