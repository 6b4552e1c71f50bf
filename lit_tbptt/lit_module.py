"""The training loop: windows in, optimizer steps out, the state carried on. For any task."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lit_tbptt.checkpoint import read_checkpoint
from lit_tbptt.errors import InputError
from lit_tbptt.lit_optimization import ManualOptimization
from lit_tbptt.lit_position import Position
from lit_tbptt.lit_training_log import TrainingLog
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.state import State, detach, reset_lanes
from lit_tbptt.tbptt import Carry, Truncation
from lit_tbptt.window import Batch, Window


class LitTBPTT(ManualOptimization):
    """Truncated backpropagation through time as a LightningModule.

    A subclass gives `initial_state`, `window_loss` and `configure_optimizers`. The data are any iterable of `Batch`es
    whose windows follow each other: row i of every window continues row i of the one before. An iterable that also has
    `state_dict` and `load_state_dict`, as `StridedLanes` has, is resumed at the batch where a run was stopped.

    A callback may define `on_window_end(trainer, module)`, called after every optimizer step: the places where a
    checkpoint can be taken, and a run stopped, without losing anything.

    Args:
        k1: Tokens per lane between two optimizer steps.
        k2: The horizon: how many tokens back from a window's end a gradient may travel. None: the same as `k1`.
        clip_norm: Largest norm of the gradient of all parameters together. None: it is not clipped.

    Attributes:
        carry: What the last window handed on.
        position: Where the run stands.

    Raises:
        InputError: `k1` is below 1, `k2` below `k1`, or `clip_norm` not above 0.
    """

    def __init__(self, k1: int = 64, k2: int | None = None, clip_norm: float | None = None) -> None:
        super().__init__(clip_norm)
        self.truncation = Truncation(k1, k2)
        self.carry: Carry | None = None
        self.position = Position()
        self.log_book = TrainingLog()
        self._resume: dict[str, Any] | None = None
        self._skip_windows = 0
        self._metrics: dict[str, float] = {}
        self._evaluation_state: State | None = None

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

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Makes one optimizer step per window, and stops at `trainer.max_steps` even inside a batch."""
        trainer = self.trainer
        done, self._skip_windows = self._skip_windows, 0
        self.position = Position(
            trainer.global_step,
            self.current_epoch,
            batch_idx,
            done,
            len(batch.windows),
            batch.position,
            trainer.fit_loop.epoch_loop.total_batch_idx,
        )
        for window in batch.windows[done:]:
            if trainer.global_step == trainer.max_steps:
                break
            self._step(window)
            self.position.step += 1
            self.position.windows += 1
            if trainer.global_step % trainer.log_every_n_steps == 0:
                self.log_dict(self._log_training(), prog_bar=True, logger=False, batch_size=1)
            for callback in trainer.callbacks:
                if hasattr(callback, "on_window_end"):
                    callback.on_window_end(trainer, self)
        # Lightning's x-axis for what others log (LearningRateMonitor, self.log in a subclass): it counts batches, and
        # adds this one when it is done.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step - 1

    def _step(self, window: Window) -> None:
        optimizer = self.optimizers()
        loss, num_targets, self.carry = self.truncation(self, window, self.carry)
        mean = loss / (num_targets.clamp(min=1) if isinstance(num_targets, Tensor) else max(num_targets, 1))
        optimizer.zero_grad()
        self.manual_backward(mean)
        optimizer.step()
        self.log_book.add(loss, num_targets)
        self.step_schedules("step", self.trainer.global_step, self._metrics)

    def on_train_epoch_end(self) -> None:
        # Lightning also ends an epoch that is only broken off: by max_steps, by EarlyStopping.
        was_last = self.trainer.is_last_batch or self.position.batch + 1 >= self.trainer.num_training_batches
        if self.position.at_batch_end and was_last:
            self.step_schedules("epoch", self.position.epoch + 1, self._metrics)
            self.position = self.position.next_epoch()

    def on_train_end(self) -> None:
        self._log_training()

    def _log_training(self) -> dict[str, float]:
        return self.log_book.flush(self.trainer, lambda mean: self.describe_loss(mean, self.trainer.train_dataloader))

    # Saving and resuming

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        position = self.position
        checkpoint["tbptt"] = {
            "position": asdict(position),
            "carry": None if self.carry is None else self.carry.describe(),
            "log": self.log_book.state_dict(self.trainer),
            "metrics": self._metrics,
            "random": random_state(),
        }
        checkpoint["epoch"], checkpoint["global_step"] = position.epoch, position.step
        position.rewrite(checkpoint["loops"]["fit_loop"], self._resumable_loader())

    def _resumable_loader(self) -> bool:
        loader = self.trainer.train_dataloader
        return hasattr(loader, "load_state_dict") and hasattr(loader, "state_dict")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None:
            return
        # Lightning converts the module to float64 only after it has loaded the weights: into float32, rounded.
        self._trainer.precision_plugin.convert_module(self)
        if self._trainer.state.fn == "fit":
            self._resume = checkpoint.get("tbptt")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # We log every n optimizer steps, however many of them a batch holds.
        warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")

    def on_train_start(self) -> None:
        saved, self._resume = self._resume, None
        self.carry, self.position, self.log_book, self._metrics = None, Position(), TrainingLog(), {}
        self._skip_windows = 0
        if saved is not None:
            self.position = Position(**saved["position"])
            if self.position.data is not None and not self._resumable_loader():
                raise InputError(
                    f"the checkpoint was written inside an epoch, and the training data, a "
                    f"{type(self.trainer.train_dataloader).__name__}, cannot start there: give it state_dict() and "
                    "load_state_dict(state), as StridedLanes has, or resume from a checkpoint of an epoch's end"
                )
            self._skip_windows = 0 if self.position.closed else self.position.windows
            self._metrics = saved["metrics"]
            if saved["carry"] is not None:
                self.carry = Carry.from_description(saved["carry"], self.initial_state, self.device)
            self.log_book.load_state_dict(self.trainer, saved["log"])
            for optimizer in self.trainer.optimizers:
                optimizer._opt_called = True  # or torch warns of a schedule that steps before it
            self.change_optimizer()
            set_random_state(saved["random"])
        self.log_book.start_clock()

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | os.PathLike[str], map_location: Any = "cpu", **settings: Any
    ) -> "LitTBPTT":
        """Makes the module that a checkpoint holds.

        Args:
            checkpoint_path: A file that a fit of this module wrote.
            map_location: Where the tensors go.
            **settings: Constructor arguments that replace those that `save_hyperparameters` kept.

        Raises:
            InputError: The file is not a checkpoint that can be read safely.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        return cls._from_checkpoint(checkpoint, checkpoint.get("hyper_parameters", {}) | settings)

    @classmethod
    def _from_checkpoint(cls, checkpoint: dict[str, Any], settings: Mapping[str, Any]) -> "LitTBPTT":
        module = cls(**settings)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module

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
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return  # an evaluation of some checkpoint is no point of the training curve
        # Where max_steps breaks a batch off, Lightning validates at a place that the run continued would pass by.
        passing = not self.position.at_batch_end
        self.log_book.write(self.trainer, values, passing)
        if not passing:
            self._metrics |= values

    def on_validation_start(self) -> None:
        self.log_book.pause_clock()

    def on_validation_epoch_start(self) -> None:
        self.on_evaluation_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.position.closed = self.position.at_batch_end

    def on_validation_end(self) -> None:
        self.log_book.resume_clock()

    def on_test_epoch_start(self) -> None:
        self.on_evaluation_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")
