"""Makes a process that reads a corpus wait, before it exits, until no library is inside a read.

Before Python 3.14, a thread that requests the interpreter lock after interpreter shutdown has begun is terminated
immediately. Inside a C++ library this aborts the process (status -6, "terminate called without an active exception").
Two kinds of threads are affected:

- our reader, inside a read of `datasets` and `pyarrow`;
- pyarrow's own threads, which release the Python objects they read from some time after a read has returned
  (apache/arrow#34314, #39862, #45214).
"""

import atexit
import logging
import time

import pyarrow as pa
from pyarrow import csv

from lit_tbptt.data import read_ahead
from lit_tbptt.data.text import network

logger = logging.getLogger(__name__)

# Seconds. A stalled server times out after a minute; a source that never answers must not block the process forever.
_PATIENCE = 120
# Seconds until a message says what the process waits for.
_QUIET = 5
# Each round also waits for tasks started by the tasks of the round before. One was enough wherever this was measured.
_ROUNDS = 10


def wait_for_arrow() -> None:
    """Returns when pyarrow's threads have finished all earlier tasks and released their objects.

    pyarrow has no call for this. With one thread left in each of its two pools, the others end after their current
    task, and tasks run in order, so a new task ends after all others. Reading CSV from memory passes through both pools
    and holds no Python object. There is no timeout: a stalled network read times out after a minute, and no thread can
    be started here to watch this one.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    memory = pa.BufferOutputStream()  # of pyarrow itself: pa.py_buffer would be one more Python object to release
    memory.write(b"a\n1\n")
    table = memory.getvalue()
    for _ in range(_ROUNDS):
        csv.read_csv(table)


@atexit.register
def wait_for_reads() -> None:
    """Closes all readers and waits for running reads."""
    network.process_ends.set()
    threads, begun = read_ahead.close_all(), time.monotonic()
    for thread in threads:
        thread.join(_QUIET)
        if thread.is_alive():
            logger.warning("a read of the corpus is under way; waiting at most %s s for its end", _PATIENCE)
            thread.join(max(0, _PATIENCE - (time.monotonic() - begun)))
    if not any(thread.is_alive() for thread in threads):
        wait_for_arrow()
