"""Reads ahead during training: one thread, a bounded number of items."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_NAME = "lit_tbptt reader"


class ReadAhead(Generic[T]):
    """Iterates over items that another thread produces.

    All ready items are taken at once, so that the threads rarely wait for each other. An error in the thread is raised
    here, after the items before it. The thread ends on `close`, at the latest on `close_all`.

    Args:
        make: Returns the iterator; called in the thread.
        depth: The thread waits when this number of items is ready; as many again may already be taken.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._depth = depth
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._taken: deque[T] = deque()
        self._end: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(make,), name=_NAME, daemon=True)
        self._thread.start()
        _open.add(self)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._taken:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._end is not None)
                self._taken, self._ready = self._ready, self._taken
                self._changed.notify()
        if not self._taken:
            assert self._end is not None
            raise self._end
        return self._taken.popleft()

    def close(self, wait: float = 0.0) -> None:
        """Stops the thread and discards its items.

        Args:
            wait: The most seconds to wait for what the thread reads at present.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join(wait)

    def _run(self, make: Callable[[], Iterator[T]]) -> None:
        end: BaseException = StopIteration()
        try:
            for item in make():
                with self._changed:
                    self._changed.wait_for(lambda: len(self._ready) < self._depth or self._closed)
                    if self._closed:
                        return
                    self._ready.append(item)
                    self._changed.notify()
        except BaseException as error:
            end = error
        with self._changed:
            self._end = end
            self._changed.notify()


_open: weakref.WeakSet[ReadAhead] = weakref.WeakSet()


def close_all() -> list[threading.Thread]:
    """Closes all open readers and returns the threads to wait for."""
    for reading in list(_open):
        reading.close()
    # All threads, not only those of `_open`: a thread releases its reader and tensors last.
    return [thread for thread in threading.enumerate() if thread.name == _NAME]
