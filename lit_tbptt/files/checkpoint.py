"""Writing and reading files so that what is read is what was written: plain torch, no Lightning."""

import os
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lit_tbptt.errors import InputError


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes tensors and plain values, so that `path` holds either the old file or the whole new one.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(Path(path)) as beside:
        try:
            torch.save(checkpoint, beside)
        except RuntimeError as error:  # what torch's writer makes of a full disk
            raise OSError(str(error).splitlines()[0]) from error


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device | Callable | dict | None = "cpu"
) -> dict[str, Any]:
    """Reads a checkpoint; runs and imports nothing because of what stands in it.

    Raises:
        InputError: There is no such file, or it is damaged, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"ckpt_path={str(path)!r}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise InputError(f"ckpt_path={str(path)!r}: not a checkpoint that can be read safely ({error})") from error
    raise InputError(f"ckpt_path={str(path)!r}: damaged: {damaged} does not match its checksum")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; on success it takes `path`'s place in one step, on disk first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def newest_readable(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Finds the newest checkpoint of a run that can be read, and warns of those that cannot.

    Returns:
        Its path and what it holds.

    Raises:
        InputError: There is none.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    broken: list[str] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found.append((path, read_checkpoint(path)))
        except InputError as error:
            broken.append(str(error))
    if not found:
        raise InputError("; ".join([f"no checkpoint that can be read in {folder}", *broken]))
    # Of the same step, the one written last: it may know of a validation that the other does not.
    path, checkpoint = max(found, key=lambda pair: (pair[1]["global_step"], pair[0].stat().st_mtime_ns))
    for message in broken:
        warnings.warn(f"{message}; {path} is taken instead", stacklevel=2)
    return path, checkpoint
