"""Opens a corpus: creates its tokenizer, and a token file or stream for each split."""

import json
import logging
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from lit_tbptt.data.progress_bar import progress_bar
from lit_tbptt.data.text.documents import texts
from lit_tbptt.data.text.reading import cache_named
from lit_tbptt.data.text.stream import DocumentStream, TextReader, document_stream
from lit_tbptt.data.text.token_file import TokenFile, fingerprint, token_file
from lit_tbptt.data.text.tokenizer_choice import BUILT_IN, check_limit, from_description, make_tokenizer
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.data.text.trained_tokenizers import first_bytes, sample_bytes
from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import replacing

logger = logging.getLogger(__name__)


def open_corpus(
    documents: Mapping[str, Any],
    tokenizer: Tokenizer | str,
    vocabulary_limit: int | None,
    cache: Path,
    streaming: bool,
) -> tuple[Tokenizer, dict[str, TokenFile | DocumentStream]]:
    """Creates the tokenizer, and for a stored corpus the token files that are not in the cache yet.

    Args:
        documents: The datasets by split.
        tokenizer: The tokenizer, or a name for `make_tokenizer`.
        vocabulary_limit: Largest vocabulary of the word or bpe tokenizer.
        cache: The folder of token files and vocabularies.
        streaming: Whether to stream the corpus instead of storing it.

    Raises:
        InputError: A split cannot be read, or a vocabulary is needed and there is no train split.
    """
    streams = {split: document_stream(some, split) for split, some in documents.items() if streaming}
    with cache_named(cache.parent):
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = _make_tokenizer(tokenizer, vocabulary_limit, documents, streams, cache)
        return tokenizer, {
            split: streams.get(split) or token_file(some, tokenizer, cache, split) for split, some in documents.items()
        }


def _make_tokenizer(
    name: str,
    vocabulary_limit: int | None,
    documents: Mapping[str, Any],
    streams: Mapping[str, DocumentStream],
    cache: Path,
) -> Tokenizer:
    if name not in BUILT_IN or name == "byte":
        return make_tokenizer(name, (), vocabulary_limit)
    if "train" not in documents:
        raise InputError(f"data.tokenizer={name!r}: takes its vocabulary from a train split, and there is none")
    check_limit(name, vocabulary_limit)  # before anything is read
    if streams:
        read = iter(TextReader(streams["train"]).read, None)
        if name == "bpe":
            read = first_bytes(read, sample_bytes(vocabulary_limit))
        else:
            logger.warning("reading the whole stream once for the vocabulary of the %s tokenizer", name)
        return _train(name, read, None, vocabulary_limit)
    train = documents["train"]
    file = cache / f"{fingerprint(train, name, vocabulary_limit)}.tokenizer.json"
    if not file.exists():
        tokenizer = _train(name, texts(train), len(train), vocabulary_limit)
        with replacing(file) as beside:
            beside.write_text(json.dumps(tokenizer.describe()))
    return from_description(json.loads(file.read_text()))


def _train(
    name: str, documents: Iterable[list[str]], num_documents: int | None, vocabulary_limit: int | None
) -> Tokenizer:
    with progress_bar(documents, "vocabulary", num_documents) as read:
        return make_tokenizer(name, chain.from_iterable(read), vocabulary_limit)
