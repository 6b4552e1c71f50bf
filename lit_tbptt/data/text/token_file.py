"""A corpus as one flat, memory-mapped file of token ids, built once."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
from datasets import Dataset

from lit_tbptt.data.progress_bar import progress_bar
from lit_tbptt.data.text.documents import texts
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed builds stay
    fcntl = None  # type: ignore[assignment]

_FORMAT = 3  # version of the files in a folder
_LOCK = "lock"


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one split, in order.

    Attributes:
        folder: The folder of `ids.bin`, `document_ends.bin` and `about.json`.
        dtype: The smallest unsigned type that holds every id.
        num_documents: Documents, each followed by its `<eos>`.
        num_empty: Skipped documents without tokens.
        num_tokens: Tokens, including every `<eos>`; each is a target once.
        num_bytes: Bytes of the documents in UTF-8.
        num_unknown: Tokens that are `<unk>`, which stand for text outside the vocabulary.
        content: SHA-256 of the ids.
    """

    folder: str
    dtype: str
    num_documents: int
    num_empty: int
    num_tokens: int
    num_bytes: int
    num_unknown: int
    content: str

    @property
    def ids(self) -> np.ndarray:
        """The ids, memory-mapped."""
        return np.memmap(Path(self.folder) / "ids.bin", self.dtype, "r", shape=(self.num_tokens,))

    @property
    def document_ends(self) -> np.ndarray:
        """The end of each document, including its `<eos>`; memory-mapped."""
        return np.memmap(Path(self.folder) / "document_ends.bin", np.int64, "r", shape=(self.num_documents,))

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / self.num_tokens


def token_file(documents: Dataset, tokenizer: Tokenizer, cache: Path, split: str) -> TokenFile:
    """Opens the token file of these documents, and builds it if there is none.

    It is identified by a fingerprint of the documents, the tokenizer and this package's version. An interrupted build
    never looks like a finished one; the leftovers of a killed build are removed by the next.

    Raises:
        InputError: The split has no text.
    """
    folder = cache / fingerprint(documents, tokenizer.describe())
    if not (folder / "about.json").exists():
        _build(documents, tokenizer, folder, split)
    return TokenFile(folder=str(folder), **json.loads((folder / "about.json").read_text()))


def fingerprint(documents: Dataset, *settings: Any) -> str:
    """Returns the name of the token file of these documents under these settings."""
    # Private in `datasets`, but its documentation describes it.
    parts = [documents._fingerprint, version("lit_tbptt"), _FORMAT, *settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build(documents: Dataset, tokenizer: Tokenizer, folder: Path, split: str) -> None:
    with _half_built(folder) as half_built:
        about = _write(documents, tokenizer, half_built, split)
        if not about["num_bytes"]:
            empty = f"{len(documents)} empty documents" if len(documents) != 1 else "an empty document"
            raise InputError(
                f"the {split} split of the corpus has no text, only {empty}: put text into it, or leave it out"
            )
        (half_built / _LOCK).unlink()
        try:
            os.rename(half_built, folder)
        except OSError:
            if not folder.exists():  # otherwise another process has built it
                raise


@contextmanager
def _half_built(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to build in, and removes it at the end; also removes those of dead processes."""
    cache, here = folder.parent, folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            with open(cache / f"builds.{_LOCK}", "w") as one_at_a_time:
                _lock(one_at_a_time, wait=True)
                for half_built in cache.glob("*.part"):
                    _remove_if_dead(half_built)
                here.mkdir()
                _lock(stack.enter_context(open(here / _LOCK, "w")), wait=True)
            yield here
    finally:
        shutil.rmtree(here, ignore_errors=True)


def _remove_if_dead(half_built: Path) -> None:
    # A folder without a lock file is about to be renamed, or belongs to another program.
    with suppress(FileNotFoundError), open(half_built / _LOCK, "r+") as file:
        if _lock(file, wait=False):
            shutil.rmtree(half_built, ignore_errors=True)


def _lock(file: IO[str], wait: bool) -> bool:
    """Locks a file until it is closed, at the latest at the end of the process, and returns whether this worked.

    On disks without locks nothing is locked, so nothing is removed there.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _write(documents: Dataset, tokenizer: Tokenizer, folder: Path, split: str) -> dict[str, Any]:
    dtype = np.min_scalar_type(tokenizer.vocabulary_size - 1)
    num_documents = num_tokens = num_bytes = num_unknown = 0
    content = hashlib.sha256()
    with (
        open(folder / "ids.bin", "wb") as file,
        open(folder / "document_ends.bin", "wb") as ends,
        progress_bar(texts(documents), f"tokenize {split}", len(documents)) as read,
    ):
        for some in read:
            encoded = tokenizer.encode_documents(some)
            num_unknown += tokenizer.num_unknown(some, encoded)
            for ids in filter(len, encoded):
                piece = ids.astype(dtype).tobytes()
                file.write(piece)
                content.update(piece)
                num_tokens += len(ids)
                num_documents += 1
                ends.write(np.int64(num_tokens).tobytes())
            num_bytes += sum(len(text.encode()) for text in some)
        for written in (file, ends):
            written.flush()
            os.fsync(written.fileno())
    num_empty = len(documents) - num_documents
    counts = (num_documents, num_empty, num_tokens, num_bytes, num_unknown)
    about = TokenFile(str(folder), dtype.name, *counts, content.hexdigest())
    values = {key: value for key, value in asdict(about).items() if key != "folder"}
    (folder / "about.json").write_text(json.dumps(values))
    return values
