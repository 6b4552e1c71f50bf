"""Atomic writes: a file is always either the old version or the complete new one."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_tbptt.errors import InputError


def local(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a local file or folder.

    Raises:
        InputError: It is a URL, which `Path` would take for a folder name.
    """
    if re.match(r"\w[\w+.-]+:/", str(path)):
        raise InputError(
            f"{str(path)!r}: runs and checkpoints are read and written on local disks only; copy the files here, or "
            "mount the bucket as a folder, and give that path"
        )
    return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`; on success the file is flushed to disk and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
