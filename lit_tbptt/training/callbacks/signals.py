"""Handles signals: the handler only sets a flag, and the run saves or stops at the next step boundary."""

import math
import signal
import sys
import threading
from collections.abc import Set
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.errors import DivergenceError, InputError
from lit_tbptt.ranks import Agreement
from lit_tbptt.training.callbacks.checkpoint import RunCheckpoint
from lit_tbptt.training.hooks import trained_weights

_REQUESTS = {"SIGTERM": "SIGTERM", "SIGINT": "SIGINT", "SIGUSR1": "save"}


class SignalHandling(Callback):
    """Saves and stops on SIGTERM and SIGINT; saves and continues on SIGUSR1.

    If one process receives a signal, all processes save together, once, and stop. The exit status of a stopped run is
    128 plus the signal's number, 143 or 130, as schedulers expect. A second SIGINT stops immediately, without saving.
    """

    def __init__(self) -> None:
        self._agreement: Agreement | None = None
        self._interrupted = False
        self._batches_left = 0
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._interrupted and name == "SIGINT":
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or name == "SIGINT"
        assert self._agreement is not None
        self._agreement.request(_REQUESTS[name])

    def _begin(self, pl_module: LightningModule) -> None:
        self._agreement = pl_module.agreement
        if self._before or threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        self._interrupted = False
        for name in _REQUESTS:
            if hasattr(signal, name):  # Windows has no SIGUSR1
                number = signal.Signals[name]
                self._before[number] = signal.signal(number, self._handle)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Moved to the end, so that a save before a stop includes what the other callbacks did.
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self] + [self]

    # Not earlier: Lightning installs its own handlers just before. They would communicate with other processes inside
    # the handler, and hang.

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)

    def on_step_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops if requested; if only a save was requested, RunCheckpoint does it."""
        self._act(trainer, pl_module.agreement.agreed - {"save"})

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # A validation is between two steps and may be long; a resumed run repeats it.
        self._batches_left -= 1
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._batches_left >= 0:
            pl_module.agreement.sync()
            if pl_module.agreement.agreed:
                with trained_weights(trainer, pl_module):
                    self._act(trainer, pl_module.agreement.agreed)
            _exchange(pl_module)

    def _act(self, trainer: Trainer, agreed: Set[str]) -> None:
        if not agreed:
            return
        saving = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint)]
        for callback in saving:
            callback.save_last(trainer)
        if agreed != {"save"}:
            where = f"saved {saving[0].last_model_path}" if saving else "nothing was saved: there is no RunCheckpoint"
            self._stop(trainer, agreed, f"after optimizer step {trainer.global_step}; {where}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _end_at_once(trainer)
        if trainer.state.fn != "fit":
            return
        # User loaders may differ in their number of batches between processes, or not know it; Lanes do not.
        loaders = trainer.val_dataloaders
        lanes = all(isinstance(one, Lanes) for one in (loaders if isinstance(loaders, list) else [loaders]))
        known = sum(trainer.num_val_batches)
        number = int(known) if math.isfinite(known) else sys.maxsize if lanes else 0
        self._batches_left = min(count for (count,) in pl_module.rank.all_gather([number]))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _end_at_once(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A signal may have come after the last window; RunCheckpoint has saved since then.
        _exchange(pl_module)
        pl_module.agreement.sync()
        self._restore(trainer)
        if pl_module.agreement.agreed - {"save"}:
            self._stop(trainer, pl_module.agreement.agreed, "at the end of the run")

    def _stop(self, trainer: Trainer, agreed: Set[str], where: str) -> None:
        name = min(agreed - {"save"})
        rank_zero_info(f"stopped by {name} {where}")
        raise SystemExit(128 + signal.Signals[name])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore(trainer)
        if isinstance(exception, SystemExit | DivergenceError | InputError):
            # These end all processes. Otherwise Lightning, when a process that it started fails, would kill this one
            # before it has printed the reason.
            getattr(trainer.strategy.launcher, "procs", []).clear()

    def _restore(self, trainer: Trainer) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:  # Lightning restores the old handler at the end of a fit
                signal.signal(number, handler)
        if self._before and trainer.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not Lightning's handler, see above
        self._before.clear()


def _exchange(pl_module: LightningModule) -> None:
    pl_module.agreement.exchange(torch.zeros((), device=pl_module.device), 0)


def _end_at_once(trainer: Trainer) -> None:
    # An evaluation outside of a fit has nothing to save. With Lightning's handler it would go on and end well, without
    # a result, or hang, see above.
    if trainer.state.fn != "fit" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
