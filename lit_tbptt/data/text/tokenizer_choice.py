"""Chooses a tokenizer: by name, from an object, or from its description in a checkpoint."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tokenizers as hf

from lit_tbptt.data.text.tokenizers import EOS, UNKNOWN, ByteTokenizer, CharTokenizer, LibraryTokenizer, Tokenizer
from lit_tbptt.data.text.trained_tokenizers import FEWEST_BYTE_PAIRS, BytePairTokenizer, WordTokenizer
from lit_tbptt.errors import InputError

BUILT_IN = ("byte", "char", "word", "bpe")


def from_description(description: dict[str, Any]) -> Tokenizer:
    """Builds a tokenizer from the result of `describe`.

    Raises:
        InputError: It was one of a class of the user's own.
    """
    match description["name"]:
        case "byte":
            return ByteTokenizer()
        case "char":
            return CharTokenizer(description["characters"])
        case "word":
            return WordTokenizer("word", hf.Tokenizer.from_str(description["json"]))
        case "bpe":
            return BytePairTokenizer(hf.Tokenizer.from_str(description["json"]), description["num_bytes"])
        case name if "json" in description:
            return LibraryTokenizer(name, hf.Tokenizer.from_str(description["json"]))
        case name:
            raise InputError(
                f"the checkpoint's tokenizer, {name!r}, is of a class of your own, which a checkpoint does not hold: "
                "build the model in Python, and give it the weights with load_state_dict"
            )


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
        name: `byte`, `char`, `word` or `bpe`; a `tokenizer.json` file, a folder with one, or a name on the Hugging Face
            Hub.
        train_texts: The training split, for tokenizers that take their vocabulary from it.
        vocabulary_limit: Maximum vocabulary size of `word` or `bpe`. None: every word of the training split, 4,096 for
            `bpe`. A small training split gives `bpe` a smaller one.

    Raises:
        InputError: There is no such tokenizer, its file is not one, or it cannot have such a vocabulary.
    """
    check_limit(name, vocabulary_limit)
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        return CharTokenizer.train(train_texts)
    if name == "word":
        return WordTokenizer.train(train_texts, vocabulary_limit)
    if name == "bpe":
        return BytePairTokenizer.train(train_texts, vocabulary_limit)
    return LibraryTokenizer(name, _load(name))


def check_limit(name: str, limit: int | None) -> None:
    """Raises InputError if the tokenizer of this name cannot have such a `vocabulary_limit`."""
    if limit is None:
        return
    given = f"data.vocabulary_limit={limit} with data.tokenizer={name!r}"
    if name not in ("word", "bpe"):
        raise InputError(f"{given}: it limits the vocabulary of word and bpe; leave it out, or choose one of these")
    if name == "word" and limit < 2:
        raise InputError(f"{given}: must be 2 or more, for {EOS} and {UNKNOWN} are included")
    if name == "bpe" and limit < FEWEST_BYTE_PAIRS:
        raise InputError(
            f"{given}: must be {FEWEST_BYTE_PAIRS} or more, for the 256 bytes and {EOS} are included; raise it, or "
            "leave it out"
        )


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
