"""The training loop: windows in, optimizer steps out, the state carried on. For any task."""

import math
import time
import warnings
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_tbptt.errors import DivergenceError, InputError
from lit_tbptt.schedules import Schedule, take_schedules
from lit_tbptt.state import State, detach, reset_lanes
from lit_tbptt.tbptt import Carry, Truncation
from lit_tbptt.window import Batch, Window


class LitTBPTT(LightningModule):
    """Truncated backpropagation through time as a LightningModule.

    A subclass gives `initial_state`, `window_loss` and `configure_optimizers`. The data are any iterable of `Batch`es
    whose windows follow each other: row i of every window continues row i of the one before.

    Args:
        k1: Tokens per lane between two optimizer steps.
        k2: The horizon: how many tokens back from a window's end a gradient may travel. None: the same as `k1`.
        clip_norm: Largest norm of the gradient of all parameters together. None: it is not clipped.

    Raises:
        InputError: `k1` is below 1, `k2` below `k1`, or `clip_norm` not above 0.
    """

    def __init__(self, k1: int = 64, k2: int | None = None, clip_norm: float | None = None) -> None:
        super().__init__()
        if clip_norm is not None and not clip_norm > 0:
            raise InputError(f"model.clip_norm={clip_norm}: must be above 0; leave it out for no clipping")
        self.automatic_optimization = False
        self.truncation = Truncation(k1, k2)
        self.clip_norm = clip_norm
        self.num_targets_trained = 0
        self.carry: Carry | None = None
        self._evaluation_state: State | None = None
        self._clock = 0.0
        self._schedules: list[Schedule] = []
        # Losses since the last log entry: they stay on the device until then, so that no step waits for them.
        self._unread: list[tuple[Tensor, Tensor | int]] = []

    def initial_state(self, num_lanes: int) -> State:
        """Returns the state of lanes that start afresh: any pytree of tensors, lane axis first in every leaf."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_state(num_lanes)")

    def window_loss(self, window: Window, state: State) -> tuple[Tensor, Tensor | int, State]:
        """Runs the model over one window.

        Returns:
            The loss summed over the scored targets, their number, and the state after the window.
        """
        raise NotImplementedError(f"{type(self).__name__} must define window_loss(window, state)")

    def advance(self, window: Window, state: State) -> State:
        """Runs over a window that is not scored; a subclass may leave out what only the loss needs."""
        return self.window_loss(window, state)[2]

    def describe_loss(self, mean_loss: float, source: Any) -> dict[str, float]:
        """Names the values that are logged for a mean loss per target over `source`, a loader."""
        return {"loss": mean_loss}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Makes one optimizer step per window, and stops at `trainer.max_steps` even inside a batch."""
        for window in batch.windows:
            if self.trainer.global_step == self.trainer.max_steps:
                break
            self._step(window)
            if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
                self.log_dict(self._log_training(), prog_bar=True, logger=False, batch_size=1)

    def _step(self, window: Window) -> None:
        optimizer = self.optimizers()
        loss, num_targets, self.carry = self.truncation(self, window, self.carry)
        mean = loss / (num_targets.clamp(min=1) if isinstance(num_targets, Tensor) else max(num_targets, 1))
        optimizer.zero_grad()
        self.manual_backward(mean)
        optimizer.step()
        self._unread.append((loss.detach(), num_targets))
        self._step_schedules("step", self.trainer.global_step)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here, and not in the step above: only here are the gradients unscaled under fp16. Where an optimizer unscales
        # them itself (fused, under fp16), Lightning refuses to clip.
        if self.clip_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm")

    def on_train_epoch_end(self) -> None:
        self._step_schedules("epoch", self.current_epoch + 1)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keeps when a subclass's schedules step, which Lightning drops under manual optimization."""
        super().__init_subclass__(**kwargs)
        if "configure_optimizers" in cls.__dict__:
            configure = cls.configure_optimizers

            @wraps(configure)
            def configure_optimizers(self: LitTBPTT) -> Any:
                configured, self._schedules = take_schedules(configure(self))
                return configured

            cls.configure_optimizers = configure_optimizers

    def _step_schedules(self, interval: str, count: int) -> None:
        for schedule in self._schedules:
            if schedule.interval != interval or count % schedule.frequency:
                continue
            metric = None
            if isinstance(schedule.scheduler, ReduceLROnPlateau):
                metrics = self.trainer.callback_metrics
                metric = metrics.get(schedule.monitor)
                if metric is None and schedule.strict and interval == "epoch":
                    raise InputError(
                        f"lr_scheduler.monitor={schedule.monitor!r}: no such metric; there are {', '.join(metrics)}"
                    )
                if metric is None:
                    continue
            self.lr_scheduler_step(schedule.scheduler, metric)

    def on_fit_start(self) -> None:
        # We log every n optimizer steps, however many of them a batch holds.
        warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()

    def on_train_end(self) -> None:
        self._log_training()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finite_losses()  # what is saved must be worth continuing from

    def _finite_losses(self) -> list[float]:
        """Reads the losses since the last log entry.

        Raises:
            DivergenceError: One of them is not finite.
        """
        losses = torch.stack([loss for loss, _ in self._unread]).tolist() if self._unread else []
        for step, loss in enumerate(losses, self.trainer.global_step - len(losses) + 1):
            if not math.isfinite(loss):
                saved = [getattr(callback, "last_model_path", "") for callback in self.trainer.checkpoint_callbacks]
                good = next((path for path in saved if path), None)
                raise DivergenceError(
                    f"the training loss is {loss} at optimizer step {step}, with a learning rate of about "
                    f"{self._learning_rate():.3g}; "
                    + (f"the last good checkpoint is {good}; " if good else "no checkpoint was written before; ")
                    + "lower the learning rate, or set clip_norm"
                )
        return losses

    def _learning_rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]

    def _log_training(self) -> dict[str, float]:
        """Logs the mean loss, the speed and the learning rate since the last time, and returns them."""
        losses = self._finite_losses()
        if not losses:
            return {}
        num_targets = int(sum(torch.as_tensor(count).item() for _, count in self._unread))
        self._unread.clear()
        self.num_targets_trained += num_targets
        now = time.perf_counter()
        values = self.describe_loss(sum(losses) / max(1, num_targets), self.trainer.train_dataloader)
        values |= {"lr": self._learning_rate(), "tokens_per_second": num_targets / (now - self._clock)}
        self._clock = now
        values = {f"train/{name}": value for name, value in values.items()}
        self.log_values(values)
        return values

    def log_values(self, values: Mapping[str, float]) -> None:
        """Writes values to the loggers, over optimizer steps and over trained targets (tokens)."""
        step, tokens = self.trainer.global_step, self.num_targets_trained
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "tokens": tokens}, step=step)
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics({f"by_tokens/{name}": value for name, value in values.items()}, step=tokens)

    # Evaluation has a state of its own, and leaves the training state alone.

    def evaluation_window(self, window: Window, state: State) -> State:
        """Scores one window in evaluation and returns the state after it; a subclass with metrics overrides this."""
        loss, num_targets, state = self.window_loss(window, state)
        self._evaluation_sums += torch.stack([loss.double(), torch.as_tensor(num_targets, device=loss.device).double()])
        return state

    def evaluation_values(self) -> dict[str, float]:
        """Returns what was found since `on_evaluation_start`, means over targets, all ranks together."""
        loss, num_targets = self.all_gather(self._evaluation_sums).view(-1, 2).sum(0).tolist()
        return self.describe_loss(loss / max(1.0, num_targets), None)

    def on_evaluation_start(self) -> None:
        """Forgets the state and the sums of the evaluation before."""
        self._evaluation_state = None
        self._evaluation_sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def _evaluation_step(self, batch: Batch) -> None:
        for window in batch.windows:
            fresh = self.initial_state(window.num_lanes)
            state = self._evaluation_state
            if state is None:
                state = fresh
            elif window.reset is not None:
                state = reset_lanes(window.reset, fresh, state)
            self._evaluation_state = detach(self.evaluation_window(window, state))

    def _evaluation_end(self, stage: str) -> None:
        self._evaluation_state = None
        values = {f"{stage}/{name}": float(value) for name, value in self.evaluation_values().items()}
        # For callbacks that monitor a metric; the loggers get it at our own x-axis.
        self.log_dict(values, logger=False)
        if not self.trainer.sanity_checking:
            self.log_values(values)

    def on_validation_start(self) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_epoch_start(self) -> None:
        self.on_evaluation_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def on_validation_end(self) -> None:
        self._clock += time.perf_counter() - self._validation_began

    def on_test_epoch_start(self) -> None:
        self.on_evaluation_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")
