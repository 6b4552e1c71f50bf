"""The training loop: windows in, optimizer steps out, the state carried on. For any task."""

import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import AdamW
from torchmetrics import Metric, MetricCollection

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Batch, Run, StepPerWindow, Task, Truncation, Update, Window, WindowLoss
from lit_tbptt.tbptt.state import State
from lit_tbptt.training.ddp import check_lanes, check_strategy
from lit_tbptt.training.evaluation import Evaluation
from lit_tbptt.training.hooks import between_hooks, check_callbacks, step_hooks, window_hooks
from lit_tbptt.training.optimization import ModuleOptimizer
from lit_tbptt.training.overrides import loop_hooks
from lit_tbptt.training.resume import ResumableModule


@loop_hooks
class LitTBPTT(Task, ResumableModule):
    """Truncated backpropagation through time as a LightningModule.

    A subclass is a task: it gives `initial_state` and `window_loss`, or `predict_window` with `outputs_loss`. The data
    are any iterable of `Batch`es whose windows follow each other: row i of every window continues row i of the one
    before. An iterable that also has `state_dict` and `load_state_dict`, as all `Lanes` have, is resumed at the batch
    where a run was stopped. `set_epoch`, if there is one, gets the number of every
    epoch.

    A lane is reset to its initial state where the data say so (`Window.reset`), in every epoch's first window, and
    where `carry_state` or `state_drop_probability` says so.

    Several processes train it as one would: each has some of the lanes, and the gradient is that of the mean over the
    targets of all of them. Works with strategies that replicate the module, such as `ddp`.

    A callback may define `on_window_end(trainer, module, window)`, called after every window, and
    `on_step_end(trainer, module)`, called after every optimizer step: the places where a checkpoint can be taken, and a
    run stopped, without losing anything. What only one process knows, such as the time or a signal, it makes known to
    the others by `agreement`.

    Args:
        k1: Time steps (in text, tokens) per lane and window.
        k2: The horizon: how many time steps back from a window's end a gradient may travel. Left out: the same as k1.
        recompute_every: Keep only every N-th state for the backward pass and compute the others again. A long horizon
            in little memory. Left out: everything is kept.
        loss_reduction: Whether the gradient is that of the mean or of the sum over a step's scored targets.
        carry_state: Whether a window starts from the state that the one before it left. If not, every window starts
            from the initial state; in evaluation too, where windows are cut to k1 time steps for that.
        state_drop_probability: Probability that a lane is reset at a window, in training.
        clip_norm: Largest norm of the gradient of all parameters together. Left out: it is not clipped.
        optimizer: Makes the optimizer from the parameters. On the command line: --optimizer.
        lr_scheduler: Makes the schedule from the optimizer. On the command line: --lr_scheduler.
        lr_interval: Whether the schedule counts optimizer steps or epochs. Left out: what the schedule says of
            itself, as WarmupCosineLR does, or epochs.

    Attributes:
        loop_settings: The arguments above that are plain values, by name.
        loss_name: What the mean loss is called in logs: `train/<loss_name>`, `val/<loss_name>`.
        network_settings: The constructor's arguments that decide the shapes of weights; a new run from the weights of
            a checkpoint takes them from it.
        truncation: Cuts gradients; its `k2` may be changed between steps.
        update: When the weights change.
        evaluation: How validation and test are made.
        evaluation_metrics: A torchmetrics metric that `evaluation_window` updates; it is reset before an evaluation and
            logged after it. None: only the loss is.
        carry: What the last window handed on.
        position: Where the run stands.
        rank: This process among those that train.
        agreement: What they agree on at step boundaries.

    Raises:
        InputError: A setting is out of its range, or `k2` above `k1` where no state is carried.
    """

    loss_name = "loss"
    network_settings: tuple[str, ...] = ()

    def __init__(
        self,
        k1: int = 64,
        k2: int | None = None,
        *,
        recompute_every: int | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        carry_state: bool = True,
        state_drop_probability: float = 0.0,
        clip_norm: float | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] | None = None,
    ) -> None:
        settings = {name: value for name, value in locals().items() if isinstance(value, int | float | str | None)}
        super().__init__(Truncation(k1, k2, recompute_every))
        self.loop_settings = settings
        if clip_norm is not None and not clip_norm > 0:
            raise InputError(f"clip_norm={clip_norm}: must be above 0; leave it out for no clipping")
        if not 0 <= state_drop_probability <= 1:
            raise InputError(f"state_drop_probability={state_drop_probability}: must be from 0 to 1")
        if lr_interval not in (None, "step", "epoch"):
            raise InputError(f"lr_interval={lr_interval!r}: must be step or epoch, or left out")
        if self.truncation.k2 > k1 and not carry_state:
            raise InputError(
                f"k2={k2} with carry_state=False: nothing lies before a window that a gradient could reach; leave k2 "
                "out"
            )
        self.update: Update = StepPerWindow(loss_reduction)
        self.carry_state = carry_state
        self.evaluation = Evaluation(reset_every=None if carry_state else k1)
        self.evaluation_metrics: Metric | MetricCollection | None = None
        self.state_drop_probability = state_drop_probability
        self.clip_norm = clip_norm
        self.optimizer, self.lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_strategy(self.trainer)
        check_callbacks(self.trainer)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._run = Run(self, self.truncation, self.agreement, self.update.repeats)
        # We log every n optimizer steps, however many of them a batch holds.
        warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")
        # Our own checkpoints are not wrong for being of the weights after a step.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization and every_n_train_steps")

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Hands the windows of a batch to the update, and stops at `trainer.max_steps` even inside a batch."""
        _check_batch(batch)
        self._until_continued.close()
        trainer = self.trainer
        done, self._skip_windows = self._skip_windows, 0
        if done and len(batch.windows) != self.position.batch_windows:
            raise InputError(
                f"windows_per_batch: the batch to be continued has {len(batch.windows)} windows, where the run to be "
                f"resumed has {self.position.batch_windows}: a resumed run cannot change it; keep it"
            )
        self.position = replace(
            self.position,
            epoch=self.current_epoch,
            batch=batch_idx,
            batch_window=done,
            batch_windows=len(batch.windows),
            data=batch.position,
            batches_before=trainer.fit_loop.epoch_loop.total_batch_idx,
            batch_finished=False,
            last_batch=trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches,
        )
        optimizer, stepped = ModuleOptimizer(self), True
        on_window_end, on_step_end = window_hooks(trainer), step_hooks(trainer, batch, batch_idx)
        between = between_hooks(trainer, batch, batch_idx)
        for number, window in enumerate(batch.windows[done:], done + 1):
            if trainer.global_step == trainer.max_steps:
                break
            for hook in between if number > 1 else ():
                hook()
            window = self._with_resets(window)
            last = self.position.last_batch and number == len(batch.windows)
            updated = self.update(window, self.carry, self._run, optimizer, last)
            stepped = updated.stepped
            self.carry = updated.carry
            self.log_book.add(self.position.step + 1, updated.loss, updated.num_targets)
            self.position.window += 1
            self.position.batch_window += 1
            if stepped:
                self._after_step()
            for hook in on_window_end:
                hook(trainer, self, window)
            for hook in on_step_end if stepped else ():
                hook(trainer, self)
        if not stepped:
            raise InputError(
                f"{type(self.update).__name__} made no step after the last of {len(batch.windows)} windows of a batch, "
                "and a checkpoint taken there would lose its gradient: choose windows_per_batch so that every batch "
                "ends with a step, and let the update step where last is true"
            )
        self._end_batch()

    def _with_resets(self, window: Window) -> Window:
        at_epoch_start = self.position.batch == self.position.batch_window == 0
        if at_epoch_start or not self.carry_state:
            return window.with_reset(torch.ones(window.num_lanes, dtype=torch.bool, device=self.device))
        if self.state_drop_probability:
            return window.with_reset(torch.rand(window.num_lanes, device=self.device) < self.state_drop_probability)
        return window

    def _after_step(self) -> None:
        self.position.step += 1
        self.step_schedules("step", self.position.step)
        self.agreement.sync()
        self.log_book.gradient_norm = self.gradient_norm
        every = self.trainer.log_every_n_steps
        if every and self.position.step % every == 0:
            values = self._log_training()
            # As self.log(prog_bar=True) does, which takes more than a millisecond.
            self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            self.trainer.progress_bar_metrics.update(values)

    def on_train_epoch_start(self) -> None:
        self._epoch_ended = False
        loader = self.trainer.train_dataloader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self._until_continued.close()
        self._epoch_ended = True
        # Where a run is continued at an epoch's end, Lightning has counted the last batch once more.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        # Lightning also ends an epoch that is only broken off: by max_steps, by EarlyStopping.
        if self.position.at_epoch_end:
            self.step_schedules("epoch", self.position.epoch + 1)
            self.position = self.position.next_epoch()

    def on_train_end(self) -> None:
        self._log_training()

    def _log_training(self) -> dict[str, float]:
        return self.log_book.flush(self.trainer, lambda mean: self.describe_loss(mean, self.trainer.train_dataloader))

    def describe_loss(self, mean_loss: float, source: Any) -> dict[str, float]:
        """Names the values that are logged for a mean loss per target over `source`, a loader."""
        return {self.loss_name: mean_loss}

    # Evaluation

    def evaluation_window(self, window: Window, state: State) -> WindowLoss:
        """Returns what a window of an evaluation costs; a subclass with `evaluation_metrics` updates them here."""
        return self.window_loss(window, state)

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation(self.trainer.val_dataloaders)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _check_batch(batch)
        self.evaluation.add(self, batch)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val", self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation(self.trainer.test_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        _check_batch(batch)
        self.evaluation.add(self, batch)

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test", self.trainer.test_dataloaders)

    def on_validation_start(self) -> None:
        # Where max_steps breaks a batch off, Lightning validates at a place that the run continued would pass by.
        self._metrics_before = None if self.position.at_batch_end else dict(self.trainer.callback_metrics)
        self.log_book.pause_clock()

    def on_validation_end(self) -> None:
        self.log_book.resume_clock()

    def _begin_evaluation(self, loaders: Any) -> None:
        check_lanes(loaders, self.trainer)
        self.evaluation.begin(self)

    def _end_evaluation(self, stage: str, loaders: Any) -> None:
        mean_loss, metrics = self.evaluation.end(self)
        values = {
            f"{stage}/{name}": value for name, value in (self.describe_loss(mean_loss, loaders) | metrics).items()
        }
        fitting = self.trainer.state.fn == "fit"
        # It is of all ranks already.
        warnings.filterwarnings("ignore", ".*sync_dist=True.* when logging on epoch level in distributed setting")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You called `self.log.*no logger configured")
            # For callbacks that monitor a metric, and for `validate`, which returns only what loggers may get. In a fit
            # they get it over optimizer steps, below.
            self.log_dict(values, logger=not fitting)
        if not fitting or self.trainer.sanity_checking:
            return  # an evaluation of some checkpoint is no point of the training curve
        self.log_book.write(self.trainer, values, passing=not self.position.at_batch_end)
        self.position.batch_finished = self.position.at_batch_end


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, Batch):
        raise InputError(
            f"the data give a {type(batch).__name__} where a Batch of windows is expected: give one iterable of Batch, "
            "such as StridedLanes, for training and for each evaluation, not a list or a dictionary of them"
        )
