"""The training loop: windows in, optimizer steps out, the state carried on. For any task."""

import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch

from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.random_state import part_random_states, random_state, set_random_state
from lit_tbptt.ranks import Agreement, Ranks
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.truncation import Truncation
from lit_tbptt.tbptt.window import Batch, Window
from lit_tbptt.training.ddp import check_lanes, check_strategy, ranks_of, settle_gradients
from lit_tbptt.training.evaluation import StatefulEvaluation
from lit_tbptt.training.log import TrainingLog
from lit_tbptt.training.optimization import ManualOptimization
from lit_tbptt.training.position import Position


class LitTBPTT(ManualOptimization, StatefulEvaluation):
    """Truncated backpropagation through time as a LightningModule.

    A subclass gives `initial_state`, `window_loss` and `configure_optimizers`. The data are any iterable of `Batch`es
    whose windows follow each other: row i of every window continues row i of the one before. An iterable that also has
    `state_dict` and `load_state_dict`, as all `Lanes` have, is resumed at the batch where a run was stopped. One that
    has `set_epoch` is told the number of every epoch.

    A lane starts afresh where the data say so (`Window.reset`), in every epoch's first window, and where
    `carry_state` or `state_drop_probability` lets it.

    Several processes train it as one would: each has some of the lanes, and the gradient is that of the mean over the
    targets of all of them. Strategies that replicate the module do, such as `ddp`.

    A callback may define `on_window_end(trainer, module, window)`, called after every optimizer step: the places where
    a checkpoint can be taken, and a run stopped, without losing anything. What only one process knows, such as the
    time or a signal, it tells the others by `agreement`.

    Args:
        k1: Tokens per lane between two optimizer steps.
        k2: The horizon: how many tokens back from a window's end a gradient may travel. Left out: the same as k1.
        checkpoint_every: Keep only every N-th state for the backward pass and compute the steps between again there: a
            long horizon in little memory. Left out: everything is kept.
        loss_reduction: Whether the gradient is that of the mean or of the sum over a window's scored targets.
        carry_state: Whether a window starts from the state that the one before it left. If not, every window starts
            from the initial state; in evaluation too, where windows are cut to k1 tokens for that.
        state_drop_probability: Probability that a lane starts afresh at a window, in training.
        clip_norm: Largest norm of the gradient of all parameters together. Left out: it is not clipped.

    Attributes:
        carry: What the last window handed on.
        position: Where the run stands.
        ranks: The processes that train.
        agreement: What they agree on at window boundaries.

    Raises:
        InputError: A setting is out of its range, or `k2` above `k1` where no state is carried.
    """

    def __init__(
        self,
        k1: int = 64,
        k2: int | None = None,
        *,
        checkpoint_every: int | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        carry_state: bool = True,
        state_drop_probability: float = 0.0,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(clip_norm)
        self.truncation = Truncation(k1, k2, checkpoint_every)
        if loss_reduction not in ("mean", "sum"):
            raise InputError(f"model.loss_reduction={loss_reduction!r}: must be mean or sum")
        if not 0 <= state_drop_probability <= 1:
            raise InputError(f"model.state_drop_probability={state_drop_probability}: must be from 0 to 1")
        if self.truncation.k2 > k1 and not carry_state:
            raise InputError(
                f"model.k2={k2} with model.carry_state=False: nothing lies before a window that a gradient could "
                "reach; leave k2 out"
            )
        self.loss_reduction = loss_reduction
        self.carry_state = carry_state
        self.evaluation_steps = None if carry_state else k1
        self.state_drop_probability = state_drop_probability
        self.carry: Carry | None = None
        self.position = Position()
        self.ranks = Ranks()
        self.agreement = Agreement(self.ranks)
        self.log_book = TrainingLog()
        self._resume: dict[str, Any] | None = None
        self._skip_windows = 0
        self._metrics: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer)

    def advance(self, window: Window, state: State) -> State:
        """Runs over a window that is not scored; a subclass may leave out what only the loss needs."""
        return self.window_loss(window, state)[2]

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
            window = self._with_resets(window)
            self._step(window)
            self.position.step += 1
            self.position.windows += 1
            self.agreement.settle()
            if trainer.global_step % trainer.log_every_n_steps == 0:
                self.log_dict(self._log_training(), prog_bar=True, logger=False, batch_size=1)
            for callback in trainer.callbacks:
                if hasattr(callback, "on_window_end"):
                    callback.on_window_end(trainer, self, window)
        # Lightning's x-axis for what others log (LearningRateMonitor, self.log in a subclass): it counts batches, and
        # adds this one when it is done.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step - 1

    def _with_resets(self, window: Window) -> Window:
        at_epoch_start = self.position.batch == self.position.windows == 0
        if at_epoch_start or not self.carry_state:
            return window.with_reset(torch.ones(window.num_lanes, dtype=torch.bool, device=self.device))
        if self.state_drop_probability:
            return window.with_reset(torch.rand(window.num_lanes, device=self.device) < self.state_drop_probability)
        return window

    def _step(self, window: Window) -> None:
        optimizer = self.optimizers()
        loss, num_targets, self.carry = self.truncation(self, window, self.carry)
        sum_of_all, targets_of_all = self.agreement.exchange(loss, num_targets)
        optimizer.zero_grad()
        # The strategy makes the mean of the processes' gradients; what is wanted is their sum.
        loss = loss * self.ranks.num_ranks
        if self.loss_reduction == "mean":
            loss = loss / torch.as_tensor(targets_of_all).clamp(min=1).to(loss.dtype)
        self.manual_backward(loss)
        optimizer.step()
        self.log_book.add(sum_of_all, targets_of_all)
        self.step_schedules("step", self.trainer.global_step, self._metrics)

    def on_train_epoch_start(self) -> None:
        loader = self.trainer.train_dataloader
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(self.current_epoch)

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
        carry = None if self.carry is None else self.carry.describe()
        # First, and by all: what may fail for one process only comes after it.
        processes = self.ranks.gather({"data": self.position.data, "carry": carry, "random": random_state()})
        position = self.position.of_all([process.pop("data") for process in processes])
        checkpoint["tbptt"] = {
            "position": dict(vars(position)),
            "processes": processes,
            "log": self.log_book.state_dict(self.trainer),
            "metrics": self._metrics,
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
        self.ranks = ranks_of(self.trainer)
        self.agreement = Agreement(self.ranks)
        # We log every n optimizer steps, however many of them a batch holds.
        warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")

    def on_train_start(self) -> None:
        check_lanes(self.trainer.train_dataloader, self.trainer)
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
            processes = saved["processes"]
            carries = [process["carry"] for process in processes]
            if carries[0] is not None:
                self.carry = Carry.from_descriptions(carries, self.ranks.share, self.initial_state, self.device)
            self.log_book.load_state_dict(self.trainer, saved["log"])
            for optimizer in self.trainer.optimizers:
                optimizer._opt_called = True  # or torch warns of a schedule that steps before it
            self.change_optimizer()
            same_number = len(processes) == self.ranks.num_ranks
            set_random_state(processes[self.ranks.rank if same_number else 0]["random"])
        if saved is None or not same_number:
            part_random_states(self.ranks.rank)
        if self.ranks.num_ranks > 1:
            settle_gradients(self)
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

    # Evaluation: what it finds is logged as a point of the training curve

    def on_evaluation_end(self, values: Mapping[str, float]) -> None:
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return  # an evaluation of some checkpoint is no point of the training curve
        # Where max_steps breaks a batch off, Lightning validates at a place that the run continued would pass by.
        passing = not self.position.at_batch_end
        self.log_book.write(self.trainer, values, passing)
        if not passing:
            self._metrics |= values
        self.position.closed = self.position.at_batch_end

    def on_validation_start(self) -> None:
        self.log_book.pause_clock()

    def on_validation_end(self) -> None:
        self.log_book.resume_clock()
