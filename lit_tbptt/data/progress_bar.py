"""The bar of a corpus that is prepared, shown and switched off as those of `datasets` are."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from datasets.utils import tqdm

Part = TypeVar("Part", bound=Sized)

_SECONDS = 1  # before the bar is shown, and between two times that it is drawn at least


@contextmanager
def progress_bar(parts: Iterable[Part], description: str, total: int | None) -> Iterator[Iterator[Part]]:
    """Counts parts while they are worked on; a second after the start a bar is shown, which leaves nothing behind.

    Args:
        parts: What is worked on; the bar counts `len` of each.
        description: What is done.
        total: The sum of all lengths. None: it is not known.

    Yields:
        The parts.
    """
    options = {"unit": " documents", "leave": False, "delay": _SECONDS}
    # miniters: it is drawn also where nothing was counted since. smoothing: with the mean speed since the start.
    with tqdm(desc=description, total=total, miniters=0, smoothing=0, **options) as bar:
        ended = Event()
        # A corpus may be one document: without it the bar would be drawn when that is done.
        drawing = Thread(target=_draw, args=(bar, ended), name="progress bar", daemon=True)
        drawing.start()
        try:
            yield _counted(parts, bar)
        finally:
            ended.set()
            drawing.join()


def _counted(parts: Iterable[Part], bar: tqdm) -> Iterator[Part]:
    for part in parts:
        yield part
        with bar.get_lock():
            bar.update(len(part))


def _draw(bar: tqdm, ended: Event) -> None:
    while not ended.wait(_SECONDS):
        with bar.get_lock():
            bar.update(0)
