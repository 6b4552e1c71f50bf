"""Writes and reads checkpoints, the only place that does; damaged files are detected. Plain torch."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import local, replacing
from lit_tbptt.files.schema import Checkpoint


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes tensors and plain values atomically: `path` holds either the old file or the complete new one.

    Raises:
        InputError: `path` is not local.
        OSError: The file cannot be written.
    """
    with replacing(local(path)) as beside:
        try:
            with open(beside, "wb") as file:  # when torch opens the file, the reason of a failure is lost
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = next((each for each in (error, error.__context__) if isinstance(each, OSError)), None)
            if reason is None:
                raise
            written = beside.stat().st_size if beside.exists() else 0
            free = shutil.disk_usage(beside.parent).free
            size = f"after {written / 1e6:.1f} MB; {free / 1e6:.1f} MB are free there"
            raise OSError(reason.errno, f"{reason.strerror or reason}, {size}", str(path)) from error


def is_plain(value: Any) -> bool:
    """Returns whether a value can be stored in a checkpoint and read again: tensors and plain values."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # whatever pickling the value raises
        return False
    return True


def read_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device | Callable | dict | None = "cpu"
) -> Checkpoint:
    """Reads a checkpoint, without running or importing anything that it names.

    Raises:
        InputError: There is no such local file, it is damaged, or it holds more than tensors and plain values.
    """
    path = local(path)
    if not path.is_file():
        raise InputError(f"checkpoint {str(path)!r}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return cast(Checkpoint, torch.load(path, map_location=map_location, weights_only=True))
    except Exception as error:
        raise InputError(f"checkpoint {str(path)!r}: not a checkpoint that can be read safely ({error})") from error
    raise InputError(f"checkpoint {str(path)!r}: damaged: {damaged} does not match its checksum")
