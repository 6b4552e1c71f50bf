"""Reading beside training: one thread, a bounded number of items ahead."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Iterates over what another thread makes.

    The thread waits when it is `depth` items ahead, and ends when it is closed. An error that it meets is raised here,
    after the items before it. The thread is a daemon: a source that hangs does not keep the process from ending.

    Args:
        make: Returns the iterator; called in the thread.
        depth: Items to be ahead at most.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        threading.Thread(target=self._run, args=(make,), name="lit_tbptt reader", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item, error = self._items.get()
        if error is not None:
            self._items.put((item, error))  # and again, for whoever asks again
            raise error
        return item

    def close(self) -> None:
        """Lets the thread end; what it has made is dropped."""
        self._closed.set()
        while not self._items.empty():
            self._items.get_nowait()

    def _run(self, make: Callable[[], Iterator[T]]) -> None:
        try:
            for item in make():
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Any, error: BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
