"""Signals only set a flag; what they ask for is done at the next window boundary."""

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_tbptt.callbacks.checkpoint import RunCheckpoint
from lit_tbptt.window import Window


class SignalHandling(Callback):
    """Saves and stops on SIGTERM and SIGINT, saves and goes on on SIGUSR1.

    The exit status of a stopped run is 128 and the signal's number, 143 or 130, as schedulers expect. A second SIGINT
    stops at once, without saving.
    """

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._save = False
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if signal.Signals(number).name == "SIGUSR1":
            self._save = True
            return
        if self._asked == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may
        # Not earlier: Lightning has put its own handlers in place just before.
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                number = signal.Signals[name]
                self._before[number] = signal.signal(number, self._handle)

    def on_window_end(self, trainer: Trainer, pl_module: LightningModule, window: Window) -> None:
        """Does what was asked for."""
        self._act(trainer)

    def _act(self, trainer: Trainer) -> None:
        if not self._save and self._asked is None:
            return
        saving = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint)]
        for callback in saving:
            callback.save_last(trainer)
        self._save = False
        if self._asked is not None:
            where = f"saved {saving[0].last_model_path}" if saving else "nothing was saved: there is no RunCheckpoint"
            rank_zero_info(f"stopped by {self._asked.name} after optimizer step {trainer.global_step}; {where}")
            raise SystemExit(128 + self._asked)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # A validation stands between two windows and may be long; the run continued makes it anew.
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._act(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked is not None:  # it came after the last window; RunCheckpoint has saved since
            raise SystemExit(128 + self._asked)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
