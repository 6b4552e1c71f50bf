"""A progress bar that counts optimizer steps."""

import math
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

# The metrics shown in the bar, and their short names.
_SHOWN = {
    "train/loss": "loss",
    "train/nats_per_token": "loss",
    "train/bits_per_byte": "bits/byte",
    "val/bits_per_byte": "val bits/byte",
    "train/tokens_per_second": "tokens/s",
}


class StepProgressBar(ProgressBar):
    """Shows the optimizer steps done and left, the time left, loss, bits per byte and tokens per second."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: tqdm | None = None
        self._evaluation: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            tqdm.write(" ".join(str(arg) for arg in args))

    def _bar(self, description: str, total: float | None, unit: str, leave: bool) -> tqdm:
        return tqdm(
            desc=description,
            total=None if total is None or math.isinf(total) else total,
            unit=unit,
            leave=leave,
            disable=not self._enabled,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._steps = self._bar("train", pl_module.estimated_steps(), "step", True)
        self._steps.update(trainer.global_step)
        self._steps.initial = trainer.global_step  # speed and time left count from here

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._steps is None:
            return
        metrics = trainer.callback_metrics
        shown = [(name, float(metrics[key])) for key, name in _SHOWN.items() if key in metrics]
        texts = [f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.3f}" for name, value in shown]
        self._steps.set_postfix_str(", ".join(texts), refresh=False)
        self._steps.update(trainer.global_step - self._steps.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._steps is not None:
            self._steps.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(
            "check validation" if trainer.sanity_checking else "validate",
            trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches,
        )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", trainer.num_test_batches)

    def _begin(self, description: str, batches: list[int | float]) -> None:
        self._evaluation = self._bar(description, sum(batches), "batch", False)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.update()

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    on_test_end = on_validation_end
