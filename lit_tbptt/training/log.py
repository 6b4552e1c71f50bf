"""The training log, which continues exactly after a resume."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_tbptt.errors import DivergenceError


class _Unread(NamedTuple):
    step: int
    loss: Tensor
    num_targets: Tensor | int


class TrainingLog:
    """Collects the losses of training and writes their means to the loggers.

    Losses stay on their device until they are read, every `log_every_n_steps` steps, so that no step waits for them.

    A checkpoint contains the entries of its step. On a resume, everything from that step on is removed from the run's
    files and written again from the checkpoint, without gaps or overlaps.

    Attributes:
        num_targets: The number of targets in all entries so far.
        step_values: Values of the last optimizer step, such as its gradient norm, for an entry at that step.
    """

    def __init__(self) -> None:
        self.num_targets = 0
        self.step_values: dict[str, Tensor | float] = {}
        self._unread: list[_Unread] = []
        self._rows: list[dict[str, float]] = []
        self._rows_step = -1
        self._clock = 0.0
        self._paused = 0.0

    def add(self, step: int, loss: Tensor, num_targets: Tensor | int) -> None:
        """Adds the summed loss of a window, its number of targets, and the step it belongs to."""
        self._unread.append(_Unread(step, loss.detach(), num_targets))

    def check(self, trainer: Trainer) -> list[float]:
        """Reads the losses since the last entry.

        Raises:
            DivergenceError: One of them is not finite.
        """
        losses = torch.stack([entry.loss for entry in self._unread]).tolist() if self._unread else []
        for entry, loss in zip(self._unread, losses, strict=True):
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"the training loss is {loss} at optimizer step {entry.step}, with a learning rate of about "
                    f"{_learning_rate(trainer):.3g}; {_last_good(trainer)}; lower the learning rate, or "
                    + ("use a line search" if trainer.lightning_module.update.repeats else "set clip_norm")
                )
        return losses

    def flush(self, trainer: Trainer, describe: Callable[[float], dict[str, float]]) -> dict[str, float]:
        """Logs mean loss and speed since the last entry, learning rate and gradient norm, and returns them."""
        losses = self.check(trainer)
        if not losses:
            return {}
        num_targets = self._num_unread()
        self._unread.clear()
        self.num_targets += num_targets
        now = time.perf_counter()
        values = describe(sum(losses) / max(1, num_targets))
        values |= {"lr": _learning_rate(trainer), "tokens_per_second": num_targets / (now - self._clock)}
        self._clock = now
        values |= {name: float(value) for name, value in self.step_values.items()}
        values = {f"train/{name}": value for name, value in values.items()}
        self.write(trainer, values)
        return values

    def write(self, trainer: Trainer, values: Mapping[str, float], passing: bool = False) -> None:
        """Writes values to the loggers, over optimizer steps, with the number of targets trained on as `tokens`.

        Args:
            trainer: The trainer.
            values: Values by name.
            passing: Whether a run resumed from here would not log them.
        """
        step = trainer.global_step
        row = {**values, "tokens": self.num_targets + self._num_unread()}
        if not passing:
            self._rows = [*(self._rows if self._rows_step == step else []), row]
            self._rows_step = step
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)

    def start_clock(self) -> None:
        """Starts the clock for tokens per second."""
        self._clock = time.perf_counter()

    def pause_clock(self) -> None:
        """Pauses the clock, for a validation."""
        self._paused = time.perf_counter()

    def resume_clock(self) -> None:
        """Resumes the clock."""
        self._clock += time.perf_counter() - self._paused

    def _num_unread(self) -> int:
        return sum(_number(entry.num_targets) for entry in self._unread)

    @property
    def num_unread(self) -> int:
        """The number of losses since the last entry."""
        return len(self._unread)

    def num_rows(self, step: int) -> int:
        """Returns the number of entries at the present step."""
        return len(self._rows) if self._rows_step == step else 0

    def state_dict(self, trainer: Trainer, num_unread: int, num_rows: int) -> dict[str, Any]:
        """Returns the log as plain values.

        Args:
            trainer: The trainer.
            num_unread: How many of the losses since the last entry are included.
            num_rows: How many entries of this step are included. A resumed run makes the later ones again, but for
                validations.

        Raises:
            DivergenceError: A loss is not finite.
        """
        losses = self.check(trainer)
        for logger in trainer.loggers:
            logger.save()  # the log files must not be older than the checkpoint
        unread = [
            (entry.step, loss, _number(entry.num_targets)) for entry, loss in zip(self._unread, losses, strict=True)
        ][:num_unread]
        later = [row for row in self._rows[num_rows:] if any(name.startswith("val/") for name in row)]
        return {
            "num_targets": self.num_targets,
            "unread": unread,
            "dtype": str(self._unread[0].loss.dtype).removeprefix("torch.") if self._unread else "float32",
            "rows": [*self._rows[:num_rows], *later] if self._rows_step == trainer.global_step else [],
            "tokens": self.num_targets + sum(count for *_, count in unread),
            "step_values": {name: float(value) for name, value in self.step_values.items()},
        }

    def load_state_dict(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        """Restores the result of `state_dict`, and logs the entries of that step again."""
        self.num_targets = state["num_targets"]
        self.step_values = dict(state["step_values"])
        dtype = getattr(torch, state["dtype"])
        device = trainer.strategy.root_device
        self._unread = [
            _Unread(step, torch.tensor(loss, dtype=dtype, device=device), count)
            for step, loss, count in state["unread"]
        ]
        self._rows, self._rows_step = list(state["rows"]), trainer.global_step
        for row in self._rows:
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step)


def _number(count: Tensor | int) -> int:
    return int(torch.as_tensor(count).item())


def _learning_rate(trainer: Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


def _last_good(trainer: Trainer) -> str:
    saved = [getattr(callback, "last_model_path", "") for callback in trainer.checkpoint_callbacks]
    good = next((path for path in saved if path), None)
    return f"the last good checkpoint is {good}" if good else "no checkpoint was written before"
