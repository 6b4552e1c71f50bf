"""Learning-rate schedules: when they step, and one that torch lacks."""

import math
from typing import Any, NamedTuple

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_tbptt.errors import InputError


class Schedule(NamedTuple):
    """A schedule and when it steps, in the words of Lightning's `lr_scheduler` dictionary.

    Attributes:
        scheduler: Any scheduler of torch.
        interval: `step` or `epoch`.
        frequency: It steps at every so many of them.
        monitor: The metric that a `ReduceLROnPlateau` looks at.
        strict: Whether a metric that is not there is an error.
    """

    scheduler: LRScheduler
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True


def take_schedules(configured: Any) -> tuple[Any, list[Schedule]]:
    """Takes what `configure_optimizers` returns apart.

    Under manual optimization Lightning keeps the schedulers, to save them, but drops when they step.

    Returns:
        The same for Lightning, without what it would drop; and the schedules.

    Raises:
        InputError: There is not exactly one optimizer.
    """
    schedulers: Any = []
    optimizers = configured
    if isinstance(configured, dict):
        optimizers = configured["optimizer"]
        schedulers = [configured["lr_scheduler"]] if configured.get("lr_scheduler") is not None else []
    elif isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], (list, tuple)):
        optimizers, schedulers = configured
    optimizers = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise InputError(f"configure_optimizers must give one optimizer, and gave {optimizers}")
    schedules = [Schedule(**entry) if isinstance(entry, dict) else Schedule(entry) for entry in schedulers]
    return (optimizers, [schedule.scheduler for schedule in schedules]), schedules


class WarmupCosineLR(LRScheduler):
    """Rises linearly over the first steps, then falls along half a cosine (Loshchilov & Hutter 2017) to a last rate.

    It counts optimizer steps.

    Args:
        optimizer: The optimizer whose learning rates are the peak.
        warmup_steps: Steps until the peak.
        num_steps: Steps until the last rate. None: `trainer.max_steps`.
        final_ratio: The last rate as a share of the peak.
    """

    interval = "step"

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 100, num_steps: int | None = None, final_ratio: float = 0.0
    ) -> None:
        if warmup_steps < 0:
            raise InputError(f"lr_scheduler.warmup_steps={warmup_steps}: must be 0 or more")
        self.warmup_steps = warmup_steps
        self.num_steps = num_steps
        self.final_ratio = final_ratio
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        # Without num_steps, so that a run resumed with another max_steps falls towards its new end.
        return {key: value for key, value in super().state_dict().items() if key != "num_steps"}

    def get_lr(self) -> list[Any]:
        return [base * self._share(self.last_epoch) for base in self.base_lrs]

    def _share(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.num_steps is None:  # no step was made yet
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_ratio + (1 - self.final_ratio) * cosine
