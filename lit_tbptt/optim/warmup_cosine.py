"""Linear warm-up and cosine decay, as one learning-rate schedule."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_tbptt.errors import InputError


class WarmupCosineLR(LRScheduler):
    """Raises the learning rate linearly, then lowers it along half a cosine (Loshchilov & Hutter 2017).

    It counts optimizer steps.

    Args:
        optimizer: The optimizer; its learning rates are the peak rates.
        warmup_steps: Steps until the peak.
        num_steps: Steps until the final rate. None: those of the fit (`LitTBPTT.estimated_steps`).
        final_ratio: The final rate as a fraction of the peak.

    Raises:
        InputError: A number is out of range.
    """

    interval = "step"

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 100, num_steps: int | None = None, final_ratio: float = 0.0
    ) -> None:
        if warmup_steps < 0:
            raise InputError(f"warmup_steps={warmup_steps}: must be 0 or more")
        if num_steps is not None and num_steps < 1:
            raise InputError(f"num_steps={num_steps}: must be 1 or more, or left out")
        if not 0 <= final_ratio < math.inf:
            raise InputError(f"final_ratio={final_ratio}: must be 0 or more")
        self.warmup_steps = warmup_steps
        self.num_steps = num_steps
        self.final_ratio = final_ratio
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        # Without num_steps, so that a run resumed with another end decays towards that.
        return {key: value for key, value in super().state_dict().items() if key != "num_steps"}

    def get_lr(self) -> list[Any]:
        return [base * self._share(self.last_epoch) for base in self.base_lrs]

    def _share(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.num_steps is None:  # before the first step
            return 1.0
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_ratio + (1 - self.final_ratio) * cosine
