"""Reads text files and writes JSON lines one by one, for commands."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_tbptt.errors import InputError


def read_text(path: str, argument: str) -> str:
    """Returns the text of a UTF-8 file, with the line breaks of a corpus, which are single characters.

    Args:
        path: The file.
        argument: The argument that names the file, for messages.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # without a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{argument}: {path}: byte {error.start} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise InputError(f"{argument}: {path}: {error.strerror}") from error


@contextmanager
def json_lines(path: str, inputs: Iterable[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Opens a file for JSON lines, and yields a function that writes and flushes one line.

    Args:
        path: The file, which is overwritten.
        inputs: Files that are read, which must differ from `path`.

    Raises:
        InputError: It cannot be written, or is one of `inputs`.
    """
    for given in inputs:
        if Path(given).exists() and Path(path).exists() and Path(path).samefile(given):
            raise InputError(f"out: {path} is read as well, and would be overwritten: give another file")

    def failed(error: OSError) -> InputError:
        return InputError(f"out: {path}: {error.strerror or error}")

    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below, where errors of writing are not of opening
    except OSError as error:
        raise failed(error) from error

    def write(row: Mapping[str, Any]) -> None:
        try:
            print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
        except OSError as error:
            raise failed(error) from error

    with file:
        yield write
