"""Where the time of a window goes, in a fit from the command line.

    python benchmarks/window_profile.py words
    python benchmarks/window_profile.py tiny --windows_per_batch 1

Microseconds per window after the first 20, by part: each part without those that it calls. `Lightning` is all that none
of the others is: its loops, hooks, callbacks and progress bar. The shapes are those of `shapes.py`.
"""

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from shapes import SHAPES

from lit_tbptt import LSTM, StridedLanes
from lit_tbptt.cli import main as command_line
from lit_tbptt.models import language_model
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.training.module import LitTBPTT
from lit_tbptt.training.module_optimizer import ModuleOptimizer
from lit_tbptt.training.optimization import ManualOptimization

WARM_UP = 20


class Stopwatch:
    """Adds up the time of each part, without what is spent in parts inside of it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.windows = 0
        self._inside = ["before"]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time inside the block for a part."""
        self._switch()
        self._inside.append(name)
        try:
            yield
        finally:
            self._switch()
            self._inside.pop()

    def window_done(self) -> None:
        """Counts a window; after the warm-up the times start from nothing."""
        self.windows += 1
        if self.windows == WARM_UP:
            self._switch()
            self.seconds.clear()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Counts the calls of a function for a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*args, **options)

        setattr(owner, name, timed)

    def wrap_iterator(self, owner: Any, name: str, part: str) -> None:
        """Counts the items of a generator function for a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any) -> Iterator[Any]:
            iterator = function(*args)
            while True:
                with self.part(part):
                    item = next(iterator, None)
                if item is None:
                    return
                yield item

        setattr(owner, name, timed)


def main(shape: str, windows_per_batch: int = 8, options: list[str] | None = None) -> None:
    """Runs and prints.

    Args:
        shape: Which work, of shapes.py.
        windows_per_batch: Windows in one of Lightning's batches.
        options: More of the command line.
    """
    watch, of = Stopwatch(), SHAPES[shape]
    watch.wrap_iterator(StridedLanes, "__iter__", "loader")
    watch.wrap(RecurrentLM, "_embed", "embedding and core, forward")
    watch.wrap(LSTM, "forward_through", "embedding and core, forward")
    watch.wrap(language_model, "linear_nats", "output layer and loss, forward")
    watch.wrap(ModuleOptimizer, "backward", "backward")
    watch.wrap(ManualOptimization, "on_before_optimizer_step", "clip")
    watch.wrap(torch.optim.Adam, "step", "optimizer")
    watch.wrap(LitTBPTT, "_after_step", "schedule and log")
    watch.wrap(LitTBPTT, "training_step", "the loop of this package")
    count(LitTBPTT, "_after_step", watch.window_done)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        arguments = of.command_line(of.write_text(Path(folder)))
        with watch.part("Lightning"):
            fit = ["--trainer.limit_val_batches=0", "--trainer.limit_test_batches=0"]
            command_line([*arguments, *fit, f"--data.windows_per_batch={windows_per_batch}", *(options or [])])
    windows = watch.windows - WARM_UP
    print(f"{of.name}, {windows_per_batch} windows per batch, {windows} windows, {torch.get_num_threads()} threads")
    for name, seconds in watch.seconds.most_common():
        print(f"{1e6 * seconds / windows:12,.0f} us  {name}")
    print(f"{1e6 * watch.seconds.total() / windows:12,.0f} us")


def count(owner: Any, name: str, tick: Callable[[], None]) -> None:
    """Calls `tick` after every call of a method."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def counted(*args: Any) -> None:
        function(*args)
        tick()

    setattr(owner, name, counted)


if __name__ == "__main__":
    auto_cli(main)
