"""Errors while a corpus is read, over a network above all: which are retried, and how they are reported."""

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

# Set when the process is about to end: nothing is waited for, or tried again, any more.
process_ends = threading.Event()
# Seconds to wait before each further try: about five minutes in all.
WAITS = (1, 2, 5, 10, 20, 30, 60, 60, 60, 60)
# A server that sends nothing for a minute is given up; `aiohttp` itself would wait for five.
_STALL = 60
# The libraries that `datasets` and `fsspec` speak HTTP with; which ones changes with their versions.
_HTTP = {"aiohttp", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"}


def storage_options() -> dict[str, Any]:
    """Returns the options of `fsspec` with which a stalled server is noticed."""
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=_STALL, sock_read=_STALL)
    return {protocol: {"client_kwargs": {"timeout": timeout}} for protocol in ("http", "https")}


def refuse_lossy_retries() -> None:
    """Turns off the retries of `datasets`, which lose text in text files.

    `datasets` calls a file's `read` again when it fails. That is exact for files of bytes. A text file drops what it
    had read and decoded in the failing call, and goes on after it. Without them the stream is taken up again where it
    was read last, by `TextReader`.
    """
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0


def read_with_retries(read: Callable[[], T], where: str) -> T:
    """Reads, and reads again after a while where the network failed.

    Args:
        read: Reads something; when it is called again after an error it must begin where it began before.
        where: The place in the corpus, for the message.

    Raises:
        SourceError: It cannot be read; the message names the file or URL, and the place.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except InputError:
            raise
        except Exception as error:
            file, passing = file_of(error), may_pass(error)
            if file is None and not passing and not isinstance(error, OSError):
                raise  # not the corpus but a program that was mapped over it
            said = str(error).strip().split("\n")  # a whole schema may stand between the first line and the last
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
    """Returns whether an error is one of the network that may be gone at the next try."""
    if isinstance(error, (FileNotFoundError, ConnectionError)) and error.__cause__ is not None:
        return may_pass(error.__cause__)  # `fsspec` calls whatever happens when a file is opened "not found"
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, FileNotFoundError):
        return False
    libraries = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or not libraries.isdisjoint(_HTTP)


def file_of(error: BaseException) -> str | None:
    """Returns the file or URL that was being read when an error was raised, if it can be told.

    Few errors of `datasets` and `pyarrow` say it; the loader that was running does.
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
