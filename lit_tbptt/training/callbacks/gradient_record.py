"""GradientRecord: measures gradient norms on recorded windows, without changing the training."""

import math
from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.ranks import Rank
from lit_tbptt.tbptt import Truncation
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.gradient_norms import gradient_norms
from lit_tbptt.tbptt.window import Window


class GradientRecord(Callback):
    """Measures the norms of d loss / d(earlier states) every N steps; a subclass says how far back, and uses them.

    One extra backward pass runs token by token over the latest windows, with the current weights, from the state that
    was carried into them, without autocast. It does not change the training: random numbers, carried state, gradients
    and buffers stay the same. The recorded windows are in the checkpoint.

    Args:
        every_n_steps: A curve is measured every N optimizer steps, or later, once enough tokens have passed since the
            last curve and the last token of some lane is scored.
        num_places: A curve is the mean of those for the losses at this many places: at the end of the latest window,
            and at equal distances before it.
    """

    def __init__(self, every_n_steps: int, num_places: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self.num_places = num_places
        # The recorded windows, and the state that was carried into the first of them.
        self._record: Carry | None = None
        self._record_window = 0
        self._due = every_n_steps
        self._rank = Rank()
        self._resume: dict[str, Any] | None = None
        # What a checkpoint contains: while a gradient is pending, what was there at the last step.
        self._saved: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the settings.

        Raises:
            InputError: `every_n_steps` or `num_places` is below 1.
        """
        for name in ("every_n_steps", "num_places"):
            if getattr(self, name) < 1:
                raise InputError(f"{type(self).__name__}: {name}={getattr(self, name)}: must be 1 or more")

    @abstractmethod
    def reach(self, truncation: Truncation) -> int:
        """Returns how many tokens before the last one a curve goes back."""

    @abstractmethod
    def on_norms(self, trainer: Trainer, pl_module: LightningModule, norms: Tensor) -> None:
        """Called with every curve, `[reach + 1]` on the CPU, the same on all ranks; see `gradient_norms`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved, self._resume = self._resume, None
        self._record, self._due, self._rank = None, self.every_n_steps, pl_module.rank
        if saved is not None:
            self._record_window, self._due = saved["window"], saved["due"]
            if saved["record"] is not None:
                self._record = Carry.from_descriptions(
                    saved["record"], pl_module.rank.share, pl_module.initial_state, pl_module.device
                )
        self._saved = self.progress()

    def on_window_end(self, trainer: Trainer, pl_module: LightningModule, window: Window) -> None:
        """Records the windows for the next curve, and measures it when it is due."""
        step, number, truncation = trainer.global_step, pl_module.position.window, pl_module.truncation
        back = self.reach(truncation)
        apart = max(1, back // self.num_places)
        num_tokens = back + 1 + apart * (self.num_places - 1)
        if self._record is not None and self._record_window == number - 1:
            self._record = Carry(self._record.state, (*self._record.context, window))
        else:
            self._record = None
        self._record_window = number
        if self._record is not None and step >= self._due and _num_tokens(self._record) >= num_tokens:
            ends = [_num_tokens(self._record) - apart * place for place in range(self.num_places)]
            records = [_beginning(self._record, end) for end in ends]
            if self._measure(trainer, pl_module, records, back):
                self._due = (step // self.every_n_steps + 1) * self.every_n_steps
            self._record = None
        # One window more than needed, since the last one of an epoch may be short.
        num_windows = -(-num_tokens // truncation.k1) + 1
        # Steps of several windows take longer than expected. Counted in tokens, which are the same on all ranks.
        if self._record is not None and _num_tokens(self._record) > num_windows * truncation.k1 + back:
            self._record = None
        if self._record is None and self._due - step <= num_windows:
            self._record = pl_module.carry
        if not pl_module.gradient_pending:
            self._saved = self.progress()

    def progress(self) -> dict[str, Any]:
        """Returns what changes during a run, for a checkpoint."""
        return {"record": self._record, "window": self._record_window, "due": self._due}

    def state_dict(self) -> dict[str, Any]:
        progress = self._saved or self.progress()
        record = progress["record"]
        return progress | {"record": None if record is None else self._rank.gather(record.describe())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict

    def _measure(self, trainer: Trainer, pl_module: LightningModule, records: list[Carry], back: int) -> bool:
        pl_module.log_book.check(trainer)  # raises if the loss is not finite
        pl_module.log_book.pause_clock()
        before, buffers = random_state(), [buffer.clone() for buffer in pl_module.buffers()]
        parts = []
        with torch.autocast(pl_module.device.type, enabled=False):
            for record in records:
                norms = gradient_norms(pl_module, record, back)
                # The mean over the scored lanes of all processes; each process has the mean over its own.
                num_scored = record.context[-1].mask_or_ones()[:, -1].sum().to(norms)[None]
                parts.append(torch.cat([norms * num_scored, num_scored]))
        sums = trainer.strategy.reduce(torch.stack(parts).sum(0), reduce_op="sum").cpu()
        norms = sums[:-1] / sums[-1].clamp(min=1)
        set_random_state(before)
        for buffer, value in zip(pl_module.buffers(), buffers, strict=True):
            buffer.data.copy_(value)  # a pending graph may use it, and must not take it for another one
        measured = 0 < float(norms[0]) < math.inf  # false if no lane's last token is scored
        if measured:
            self.on_norms(trainer, pl_module, norms)
        pl_module.log_book.resume_clock()
        return measured


def _num_tokens(record: Carry) -> int:
    return sum(window.num_time_steps for window in record.context)


def _beginning(record: Carry, num_tokens: int) -> Carry:
    """Returns the record of the first `num_tokens` tokens."""
    windows = []
    for window in record.context:
        if num_tokens > 0:
            windows.append(window if window.num_time_steps <= num_tokens else window.split(num_tokens)[0])
        num_tokens -= window.num_time_steps
    return Carry(record.state, tuple(windows))
