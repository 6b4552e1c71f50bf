"""What a test leaves behind: threads, processes and handlers of signals."""

import contextlib
import multiprocessing.resource_tracker
import signal
import threading
from multiprocessing import forkserver
from pathlib import Path

import pytest
from processes import wait_until

# For as long as the process lives: those of fsspec for all its connections, and that of progress bars.
LASTING = ("fsspecIO", "asyncio_", "tqdm", "TMonitor")


def threads():
    return {thread for thread in threading.enumerate() if not thread.name.startswith(LASTING)}


def processes():
    children = set()
    for of_thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            children |= {int(pid) for pid in of_thread.read_text().split()}
    lasting = {forkserver._forkserver._forkserver_pid, multiprocessing.resource_tracker._resource_tracker._pid}
    return children - lasting


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    before, handlers_before = threads() | processes(), handlers()
    yield
    wait_until(lambda: threads() | processes() <= before, lambda: f"left: {(threads() | processes()) - before}")
    assert handlers() == handlers_before
