"""The end of a process that reads a corpus: it waits until no library is inside a read.

Before Python 3.14, a thread that asks for the interpreter's lock once the interpreter has begun to end is ended on the
spot. Below a C++ library this aborts the process (status -6, "terminate called without an active exception"). Two
kinds of threads get there:

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

# Seconds. A stalled server is given up after a minute; a source that never answers does not keep the process forever.
_PATIENCE = 120
# Seconds until a message says what the process waits for.
_QUIET = 5
# Each round also outlasts one more task that another task had started. One was enough wherever this was measured.
_ROUNDS = 10


def wait_for_arrow() -> None:
    """Returns when pyarrow's threads have finished, and released, all that was handed to them before.

    pyarrow has no call for that. With one thread left in each of its two pools, the others end after their present
    task, and tasks run in the order in which they came, so a new task ends after all others. Reading CSV from memory
    passes through both pools and holds no Python object. There is no limit: a read over a network that stalls is given
    up after a minute, and no thread can be started here to watch over this one.
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
    """Closes all readers and waits for reads that are under way."""
    network.process_ends.set()
    threads, begun = read_ahead.close_all(), time.monotonic()
    for thread in threads:
        thread.join(_QUIET)
        if thread.is_alive():
            logger.warning("a read of the corpus is under way; waiting at most %s s for its end", _PATIENCE)
            thread.join(max(0, _PATIENCE - (time.monotonic() - begun)))
    if not any(thread.is_alive() for thread in threads):
        wait_for_arrow()
