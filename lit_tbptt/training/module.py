"""LitTBPTT, the training loop for any task: runs windows, makes optimizer steps, carries the state."""

import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import AdamW

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.errors import InputError
from lit_tbptt.random_state import sharing
from lit_tbptt.tbptt import Batch, Place, Run, StepPerWindow, StepPerWindows, Task, Truncation, Update, Updated, Window
from lit_tbptt.tbptt.closure import StepWithClosure
from lit_tbptt.tbptt.run import check_reduction
from lit_tbptt.training.ddp import check_strategy
from lit_tbptt.training.evaluation import Evaluation
from lit_tbptt.training.hooks import between_hooks, check_callbacks, match_precision, step_hooks, window_hooks
from lit_tbptt.training.module_optimizer import ModuleOptimizer, check_closure, needs_closure
from lit_tbptt.training.overrides import loop_hooks
from lit_tbptt.training.stages import EvaluatingModule, check_batch


@loop_hooks
class LitTBPTT(Task, EvaluatingModule):
    """Truncated backpropagation through time as a LightningModule.

    A subclass is a task: it defines `initial_state` and either `window_loss`, or `predict_window` and `outputs_loss`.
    The data is any iterable of `Batch`es whose windows are contiguous: row i of every window continues row i of the
    previous one. If the iterable also has `state_dict` and `load_state_dict`, as all `Lanes` have, a run resumes at the
    batch where it was stopped. If it has `set_epoch`, this is called with the number of every epoch.

    A lane is reset to its initial state by the data (`Window.reset`), in the first window of every epoch, and by
    `carry_state` and `state_drop_probability`.

    With several processes, each one has some of the lanes, and the gradient is that of the mean over the targets of all
    processes. Works with strategies that replicate the module, such as `ddp`.

    A callback may define `on_window_end(trainer, module, window)`, called after every window, and
    `on_step_end(trainer, module)`, called after every optimizer step, when a checkpoint can be taken or the run stopped
    without losing anything. A callback that decides by something only one process knows, such as the time or a signal,
    requests it with `agreement`, so that all processes act together.

    Args:
        k1: Time steps (in text, tokens) per lane and window.
        k2: The horizon: how many time steps back from a window's end a gradient may travel. Left out: the same as k1.
        recompute_every: Keep only every N-th state for the backward pass and compute the others again. A long horizon
            in little memory. Left out: everything is kept.
        cuda_graph: Whether windows are run from a CUDA graph; see `Truncation`. Faster for loops of small kernels; it
            needs an NVIDIA GPU.
        loss_reduction: Whether the gradient is that of the mean or of the sum over a step's scored targets.
        carry_state: Whether a window starts from the final state of the previous one. If not, every window starts from
            the initial state; also in evaluation, where windows are then cut to k1 time steps.
        state_drop_probability: Probability that a lane is reset at the start of a window, in training.
        windows_per_step: Windows whose gradients are added for a step; windows_per_batch is a multiple of it.
        update: When the weights change, such as RandomTruncation. Left out: after every window, or `windows_per_step`.
        evaluation: How validate and test score windows. Left out: with frozen weights, as
            the validations within a fit and predictions always do.
        clip_norm: Maximum norm of the gradient over all parameters. Left out: no clipping.
        optimizer: Makes the optimizer from the parameters. On the command line: --optimizer.
        lr_scheduler: Makes the schedule from the optimizer. On the command line: --lr_scheduler.
        lr_interval: Whether the schedule counts optimizer steps or epochs. Left out: the schedule's own interval, as in
            WarmupCosineLR, or else epochs.

    Attributes:
        loop_settings: The arguments above that are plain values, by name.
        loss_name: The name of the mean loss in logs: `train/<loss_name>`, `val/<loss_name>`.
        network_settings: The constructor arguments that determine the shapes of weights; a new run with `--init_from`
            takes them from the checkpoint.
        truncation: Truncates gradients; its `k2` may be changed between steps.
        update: When the weights change; an Update.
        static_evaluation: How the validations within a fit, and predictions, are made.
        evaluation_metrics: A torchmetrics metric, or a collection, of a task with `predict_window`: it is updated with
            the outputs and targets that are scored (`Evaluation.update_metrics`), reset before an evaluation and logged
            after it. None: only the loss is.
        carry: The carry after the last window.
        position: The position of the run.
        rank: The rank of this process.
        agreement: Exchanges losses and requests between the ranks.

    Raises:
        InputError: A setting is out of range, or `k2` is above `k1` although no state is carried.
    """

    loss_name = "loss"
    network_settings: tuple[str, ...] = ()

    def __init__(
        self,
        k1: int = 64,
        k2: int | None = None,
        *,
        recompute_every: int | None = None,
        cuda_graph: bool = False,
        loss_reduction: Literal["mean", "sum"] = "mean",
        carry_state: bool = True,
        state_drop_probability: float = 0.0,
        windows_per_step: int = 1,
        update: Update | None = None,
        evaluation: Evaluation | None = None,
        clip_norm: float | None = None,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] | None = None,
    ) -> None:
        settings = {name: value for name, value in locals().items() if isinstance(value, int | float | str | None)}
        super().__init__(Truncation(k1, k2, recompute_every, cuda_graph))
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
        check_reduction(loss_reduction)
        self.loss_reduction: Literal["mean", "sum"] = loss_reduction
        if not isinstance(update, Update | None):
            raise InputError(f"update={update!r}: must be an Update object, such as RandomTruncation(0.1)")
        if update is not None and update.joins_windows and not carry_state:
            raise InputError(
                f"update={type(update).__name__} with carry_state=False: no gradient passes from window to window; "
                "leave one of them out"
            )
        if update is not None and windows_per_step != 1:
            raise InputError(
                f"windows_per_step={windows_per_step} with update={type(update).__name__}: give one of them"
            )
        given = StepPerWindow() if windows_per_step == 1 else StepPerWindows(windows_per_step)
        self.update: Update = update or given
        self._closure = StepWithClosure()
        self.carry_state = carry_state
        self.static_evaluation = Evaluation()
        self.static_evaluation.reset_every = None if carry_state else k1
        self.evaluation = evaluation
        self.evaluation_metrics = None
        self.state_drop_probability = state_drop_probability
        self.clip_norm = clip_norm
        self.optimizer, self.lr_scheduler, self.lr_interval = optimizer, lr_scheduler, lr_interval

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_strategy(self.trainer)
        check_callbacks(self.trainer)
        match_precision(self.trainer)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.update is self._closure:  # of an earlier fit, whose optimizer may have been another
            self.update = StepPerWindow()
        if needs_closure(self.trainer.optimizers[0]) and type(self.update) is StepPerWindow:
            self.update = self._closure
        check_closure(self)
        self._run = Run(self, self.truncation, self.agreement, self.update.repeats, self.loss_reduction)
        self.update.begin(self._run)
        # We log every n optimizer steps, for any number of steps per batch.
        warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")
        # Our checkpoints are meant to contain the weights after a step.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization and every_n_train_steps")

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Hands the windows of a batch to the update, and stops at `trainer.max_steps` even inside a batch."""
        check_batch(batch)
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
        self._skip_repeated_end()
        if not self.position.last_batch:
            self.update.check_windows_per_batch(len(batch.windows))
        optimizer, stepped = ModuleOptimizer(self), True
        on_window_end, (averaging, on_step_end) = window_hooks(trainer), step_hooks(trainer, batch, batch_idx)
        between = between_hooks(trainer, batch, batch_idx)
        scored = batch.scored or (True,) * len(batch.windows)
        if batch.scored_here:
            scored = self.rank.any_of(scored)
        factors = batch.step_factors or (1.0,) * len(batch.windows)
        for number, window in enumerate(batch.windows[done:], done):
            if trainer.global_step == trainer.max_steps:
                break
            for hook in between if number else ():
                hook()
            if not self.update.steps_every_window and (scored[number] or self.update.spans_batches):
                self._mark_step_boundary()
            window = self._with_resets(window)
            place = Place(self.position.window, number, scored, self.position.last_batch, factors[number])
            process = self.update if scored[number] else self.update.pass_over
            with sharing(self._shared_generator):
                updated = process(window, self.carry, self._run, optimizer, place)
            if not isinstance(updated, Updated):
                raise InputError(f"{type(self.update).__name__} returned {updated!r}: it must return an Updated")
            stepped = updated.stepped if scored[number] else stepped
            self.carry = updated.carry
            self.log_book.add(self.position.step + 1, updated.loss, updated.num_targets)
            self.position.window += 1
            self.position.batch_window += 1
            if updated.stepped:
                self._step_boundary = None
                self._after_step(updated)
                for hook in averaging:
                    hook(trainer, self)
            for hook in on_window_end:
                hook(trainer, self, window)
            for hook in on_step_end if updated.stepped else ():
                hook(trainer, self)
        if not stepped and not self.update.spans_batches:
            raise InputError(
                f"{type(self.update).__name__} made no step after the last of {len(batch.windows)} windows of a batch, "
                "and a checkpoint taken there would lose its gradient: choose windows_per_batch so that every batch "
                "ends with a step, and let the update step where place.ends_batch is true"
            )
        self._end_batch()

    def _with_resets(self, window: Window) -> Window:
        at_epoch_start = self.position.batch == self.position.batch_window == 0
        if at_epoch_start or not self.carry_state:
            return window.with_reset(torch.ones(window.num_lanes, dtype=torch.bool, device=self.device))
        if self.state_drop_probability:
            return window.with_reset(torch.rand(window.num_lanes, device=self.device) < self.state_drop_probability)
        return window

    def _after_step(self, updated: Updated) -> None:
        self.position.step += 1
        self.step_schedules("step", self.position.step)
        self.agreement.sync()
        self.log_book.step_values = {} if self.gradient_norm is None else {"gradient_norm": self.gradient_norm}
        if self.update.repeats:
            self.log_book.step_values["evaluations"] = updated.evaluations
        every = self.trainer.log_every_n_steps
        if every and self.position.step % every == 0:
            values = self._log_training()
            # The effect of self.log(prog_bar=True), which takes more than a millisecond.
            self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            self.trainer.progress_bar_metrics.update(values)

    def on_train_epoch_start(self) -> None:
        self._epoch_ended = False
        loader = self.trainer.train_dataloader
        self._check_burn_in(loader)
        if isinstance(loader, Lanes):
            self.update.check_windows_per_batch(loader.windows_per_batch)
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.current_epoch)

    def _check_burn_in(self, loader: Any) -> None:
        """Raises InputError where time steps after a reset go unscored, and this module resets lanes by itself."""
        for name, off in (("carry_state", True), ("state_drop_probability", 0.0)):
            if getattr(loader, "burn_in", 0) and getattr(self, name) != off:
                raise InputError(
                    f"burn_in={loader.burn_in} with model.{name}={getattr(self, name)}: the lanes count from their own "
                    "resets, and would score what follows the model's; leave one of them out"
                )

    def on_train_epoch_end(self) -> None:
        self._until_continued.close()
        self._epoch_ended = True
        # If a run is resumed at the end of an epoch, Lightning has counted the last batch twice.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        # Lightning also ends an epoch that is only interrupted, by max_steps or EarlyStopping.
        if self.position.at_epoch_end:
            if self.position.step == 0 and not self.trainer.fast_dev_run:
                raise InputError(
                    "no window of the training data has a target, so a whole epoch made no step: make the mask true "
                    "where targets count, and burn_in shorter than the sequences"
                )
            self._step_boundary = None
            self.step_schedules("epoch", self.position.epoch + 1)
            self.position = self.position.next_epoch()

    def on_train_end(self) -> None:
        if not self.gradient_pending:  # otherwise the last losses are those of windows that a resumed run repeats
            self._log_training()

    def _log_training(self) -> dict[str, float]:
        return self.log_book.flush(self.trainer, lambda mean: self.describe_loss(mean, self.trainer.train_dataloader))
