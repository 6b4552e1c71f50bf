"""Errors while reading a corpus, mostly over a network: which are retried, and how they are reported."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import datasets

from lit_tbptt.data.text.files import advice
from lit_tbptt.errors import InputError, SourceError

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Set when the process is about to end: waits and retries stop.
process_ends = threading.Event()
# Seconds to wait before each retry: about five minutes in total.
WAITS = (1, 2, 5, 10, 20, 30, 60, 60, 60, 60)
# Timeout for a server that sends nothing, in seconds; the default of `aiohttp` is five minutes.
_STALL = 60
# The HTTP libraries of `datasets` and `fsspec`, which differ between their versions.
_HTTP = {"aiohttp", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}


def storage_options() -> dict[str, Any]:
    """Returns options for `fsspec` that detect a stalled server."""
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=_STALL, sock_read=_STALL)
    return {protocol: {"client_kwargs": {"timeout": timeout}} for protocol in ("http", "https")}


def refuse_lossy_retries() -> None:
    """Turns off the retries of `datasets`, which lose text in text files.

    `datasets` repeats a file's `read` when it fails. This is exact for binary files. A text file, however, loses what
    it had read and decoded in the failed call, and continues after it. Without these retries, `TextReader` reopens the
    stream at its last position.
    """
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0


def read_with_retries(read: Callable[[], T], where: str) -> T:
    """Calls `read`, and retries it after network failures.

    Args:
        read: The function; when called again after an error, it must start from the same position.
        where: The position in the corpus, for messages.

    Raises:
        SourceError: Reading failed; the message names the file or URL, and the position.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except InputError:
            raise
        except Exception as error:
            file, passing = file_of(error), may_pass(error)
            if file is None and not passing and not isinstance(error, OSError):
                raise  # from a function that the user mapped over the corpus
            said = str(error).strip().split("\n")  # the lines in between may be a whole schema
            trouble = (
                f"{file or 'the corpus'}, {where}: {type(error).__name__}: {' ... '.join(said[:1] + said[1:][-1:])}"
            )
            if not passing:
                way_out = advice() if isinstance(error, UnicodeDecodeError) else "repair the file, or leave it out"
                raise SourceError(f"{trouble}; {way_out}") from error
            if wait is None:
                raise SourceError(
                    f"{trouble}; when it can be read again, start again, or continue a run with --ckpt_path last"
                ) from error
            logger.warning("%s; trying again in %s s", trouble, wait)
            if process_ends.wait(wait):
                raise
    raise AssertionError


def may_pass(error: BaseException) -> bool:
    """Returns whether an error is a network error that may not occur again."""
    if isinstance(error, (FileNotFoundError, ConnectionError)) and error.__cause__ is not None:
        return may_pass(error.__cause__)  # `fsspec` raises "not found" for any error while opening a file
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, FileNotFoundError):
        return False
    libraries = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or not libraries.isdisjoint(_HTTP)


def file_of(error: BaseException) -> str | None:
    """Returns the file or URL that was being read when an error was raised, if known.

    Few errors of `datasets` and `pyarrow` name it, so it is taken from the local variables of the running loader.
    """
    found, before = _file_in(error.__traceback__), error.__cause__ or error.__context__
    return file_of(before) if found is None and before is not None else found


def _file_in(traceback: TracebackType | None) -> str | None:
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").startswith("datasets."):
            names = (frame.f_locals.get(variable) for variable in ("file", "urlpath"))
            found = next((name for name in names if isinstance(name, str)), found)
        traceback = traceback.tb_next
    return found
