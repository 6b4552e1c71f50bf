"""Saves a run between two windows and resumes it there, bit for bit."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.files.schema import Checkpoint, RankState, RunState, TruncationState, new_run_state, run_state
from lit_tbptt.random_state import random_state, separate_generators, set_random_state
from lit_tbptt.ranks import Agreement, Rank
from lit_tbptt.tbptt import Carry, Truncation
from lit_tbptt.tbptt.state import State
from lit_tbptt.training.ddp import check_lanes, fix_gradient_layout, rank_of
from lit_tbptt.training.hooks import check_resumed_callbacks
from lit_tbptt.training.log import TrainingLog
from lit_tbptt.training.optimization import ManualOptimization
from lit_tbptt.training.overrides import is_watched, loop_hooks
from lit_tbptt.training.position import Position


class StepBoundary(NamedTuple):
    """What a checkpoint contains while a gradient is pending: the run before the first window of that gradient.

    Attributes:
        position: The position there.
        carry: The carry into that window.
        random: The states of the random number generators.
        shared_random: The state of the generator that all ranks share.
        num_unread: The number of losses that the log had not yet read.
        num_rows: The number of entries of the log at this step.
    """

    position: Position
    carry: Carry | None
    random: dict[str, Any]
    shared_random: Tensor
    num_unread: int
    num_rows: int


@loop_hooks
class ResumableModule(ManualOptimization):
    """A LightningModule that saves and restores everything that changes during a run.

    Args:
        truncation: Truncates gradients; its horizon is saved.

    Attributes:
        carry: The carry after the last window.
        position: The position of the run.
        rank: The rank of this process.
        agreement: Exchanges losses and requests between the ranks.
        log_book: The training log.
    """

    initial_state: Callable[[int], State]

    def __init__(self, truncation: Truncation) -> None:
        super().__init__()
        self.truncation = truncation
        self._first_k2 = truncation.k2
        self.carry: Carry | None = None
        self.position = Position()
        self.rank = Rank()
        self.agreement = Agreement()
        self.log_book = TrainingLog()
        # Taken here, because Lightning seeds processes again in a fit if there are several.
        self._shared_generator = torch.default_generator.clone_state()
        self._resume: RunState | None = None
        self._until_continued = ExitStack()
        self._skip_windows = 0
        self._step_boundary: StepBoundary | None = None
        self._ends_done = 0
        self._epoch_ended = False
        self._metrics_before: dict[str, Tensor] | None = None
        self._trained_at_start: dict[str, bool] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        here = self._step_boundary or self._boundary_here()
        own: RankState = {"carry": None if here.carry is None else here.carry.describe(), "random": here.random}
        # All ranks gather first; what may fail on one rank only comes after it.
        datas, ranks = zip(*self.rank.gather((here.position.data, own)), strict=True)
        position = here.position.united(datas)
        saved = new_run_state(checkpoint)
        saved["position"] = dict(vars(position))
        saved["ranks"] = list(ranks)
        saved["shared_random"] = here.shared_random
        saved["truncation"] = {"k1": self.truncation.k1, "k2_setting": self._first_k2, "k2": self.truncation.k2}
        saved["optimizers"] = self.optimizer_names()
        # Only what a callback such as BaseFinetuning has changed: what the module itself freezes may be changed by it.
        trained = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        saved["trained"] = {name: now for name, now in trained.items() if now != self._trained_at_start.get(name, now)}
        saved["stopping"] = self.trainer.should_stop and not self._epoch_ended
        saved["ends_done"] = self.position.batches_before + self.position.batch_finished
        saved["log"] = self.log_book.state_dict(self.trainer, here.num_unread, here.num_rows)
        metrics = self.trainer.callback_metrics if self._metrics_before is None else self._metrics_before
        saved["metrics"] = {name: torch.as_tensor(value).detach().cpu() for name, value in metrics.items()}
        loader = self.trainer.train_dataloader
        position.rewrite(checkpoint, saved["stopping"], loader.state_dict() if self._resumable_loader() else None)

    @property
    def gradient_pending(self) -> bool:
        """Whether windows have run whose gradient no step has used; a resumed run repeats them."""
        return self._step_boundary is not None

    def _boundary_here(self) -> StepBoundary:
        log = self.log_book
        shared = self._shared_generator.get_state()
        num_rows = log.num_rows(self.trainer.global_step)
        return StepBoundary(replace(self.position), self.carry, random_state(), shared, log.num_unread, num_rows)

    def _mark_step_boundary(self) -> None:
        """Called before a window that may leave a gradient pending."""
        if self._step_boundary is None:
            self._step_boundary = self._boundary_here()

    def _skip_repeated_end(self) -> None:
        """Lets no validation follow a batch that is repeated because a gradient was pending, if it did before."""
        if self.position.batches_before < self._ends_done:
            self._set_until_continued(self.trainer, "limit_val_batches", 0)

    def _resumable_loader(self) -> bool:
        loader = self.trainer.train_dataloader
        return hasattr(loader, "load_state_dict") and hasattr(loader, "state_dict")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._resume, self._until_continued = None, ExitStack()  # an earlier fit may have failed before resetting them

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = run_state(checkpoint)
        if self._trainer is None:
            return
        # Lightning converts the module to float64 only after loading the weights, which would round them to float32.
        self._trainer.precision_plugin.convert_module(self)
        if self._trainer.state.fn == "fit":
            self._resume = saved
            check_resumed_callbacks(self._trainer, checkpoint)
            self._check_precision(checkpoint)
            self._take_truncation(saved["truncation"])

    def _check_precision(self, checkpoint: Mapping[str, Any]) -> None:
        # Callbacks that average weights store the average under "state_dict".
        weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
        for name, ours in self.state_dict().items():
            if name in weights and weights[name].dtype != ours.dtype:
                raise InputError(
                    f"trainer.precision={self.trainer.precision} makes weights of {ours.dtype}, where the run to be "
                    f"resumed has {weights[name].dtype}: a resumed run cannot change it; keep the precision, or start "
                    "a new run from these weights"
                )

    def _take_truncation(self, saved: TruncationState) -> None:
        if saved["k1"] != self.truncation.k1:
            raise InputError(
                f"k1={self.truncation.k1}, where the run to be resumed has k1={saved['k1']}: a resumed run cannot "
                "change it, since its windows would be others; keep it, or start a new run from these weights"
            )
        if saved["k2_setting"] == self._first_k2:  # otherwise the user has given another k2
            self.truncation.k2 = saved["k2"]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.rank = rank_of(self.trainer)
        self.agreement = Agreement(self.rank.num_ranks)
        if self._resume is not None:
            ours, theirs = (" and ".join(names) for names in (self.optimizer_names(), self._resume["optimizers"]))
            if ours != theirs:
                raise InputError(
                    f"configure_optimizers gave {ours}, where the run to be resumed has {theirs}: a resumed run cannot "
                    "change these classes; keep them, or start a new run from these weights"
                )
            # If a schedule has asked how long the fit is, Lightning has loaded the data and begun to iterate before it
            # restores its loops, and would start at the first batch.
            self.trainer.fit_loop._combined_loader = None
            position, loop = Position(**self._resume["position"]), self.trainer.fit_loop.epoch_loop
            if position.awaits_end and position.step == loop.max_steps:
                self._set_until_continued(loop, "max_steps", loop.max_steps + 1)  # or Lightning would return at once

    def on_train_start(self) -> None:
        check_lanes(self.trainer.train_dataloader, self.trainer, training=True)
        saved, self._resume = self._resume, None
        self.carry, self.position, self.log_book, self._metrics_before = None, Position(), TrainingLog(), None
        self._skip_windows = self._ends_done = 0
        self._step_boundary = None
        self._epoch_ended = False
        self._trained_at_start = {name: parameter.requires_grad for name, parameter in self.named_parameters()}
        seed = int(torch.randint(2**63 - 1, (), generator=self._shared_generator, device="cpu"))
        self._shared_generator.manual_seed(*self.rank.all_gather([seed])[0])
        if saved is not None:
            self._continue(saved)
        if saved is None or len(saved["ranks"]) != self.rank.num_ranks:
            separate_generators(self.rank.number)
        if self.rank.num_ranks > 1:
            fix_gradient_layout(self)
        if is_watched(self, "on_save_checkpoint"):
            # Check now that it calls super(), and not when the first checkpoint is due.
            self.trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self.log_book.start_clock()

    def _set_until_continued(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute until Lightning has continued the epoch: in its next batch, or at its end."""
        self._until_continued.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def _end_batch(self) -> None:
        """Called after the last window of a batch, and when max_steps interrupts the batch."""
        loop = self.trainer.fit_loop
        # Lightning's x-axis for other logging (LearningRateMonitor, self.log in a subclass): it counts batches, and
        # adds this one afterwards.
        loop.epoch_loop._batches_that_stepped = self.trainer.global_step - 1
        # Lightning ends an epoch that max_steps interrupts; a resumed run continues it.
        if self.trainer.global_step == self.trainer.max_steps and not self.position.at_epoch_end:
            validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
            self.position.batch_finished = self.position.at_batch_end and not validates

    def _continue(self, saved: RunState) -> None:
        self.position, self._ends_done = Position(**saved["position"]), saved["ends_done"]
        if self.position.data is not None and not self._resumable_loader():
            raise InputError(
                f"the checkpoint was written inside an epoch, and the training data, a "
                f"{type(self.trainer.train_dataloader).__name__}, cannot start there: give it state_dict() and "
                "load_state_dict(state), as StridedLanes has, or resume from a checkpoint of an epoch's end"
            )
        if saved["stopping"]:
            self._until_continued.callback(setattr, self.trainer, "should_stop", True)
        self._skip_windows = 0 if self.position.batch_finished else self.position.batch_window
        if self._skip_windows:
            # Callbacks have already logged at the start of this batch.
            self._set_until_continued(self.trainer, "log_every_n_steps", 0)
        loop = self.trainer.fit_loop
        if self.position.batch_finished and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            loop.epoch_loop._batches_that_stepped -= 1  # Lightning skips the validation and counts one too many
        # The metrics that callbacks and schedules monitor (rounded by Lightning), since the epoch may end next.
        self.trainer.callback_metrics.update(saved["metrics"])
        ranks = saved["ranks"]
        carries = [rank["carry"] for rank in ranks if rank["carry"] is not None]
        if carries:
            self.carry = Carry.from_descriptions(carries, self.rank.share, self.initial_state, self.device)
        self.log_book.load_state_dict(self.trainer, saved["log"])
        for optimizer in self.trainer.optimizers:
            optimizer._opt_called = True  # otherwise torch warns that a schedule steps before it
        self.change_optimizer()
        for name, trained in saved.get("trained", {}).items():
            self.get_parameter(name).requires_grad_(trained)
        set_random_state(ranks[self.rank.number if len(ranks) == self.rank.num_ranks else 0]["random"])
        if "shared_random" in saved:
            self._shared_generator.set_state(saved["shared_random"])

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | os.PathLike[str], map_location: Any = "cpu", **settings: Any
    ) -> Self:
        """Builds the module of a checkpoint.

        Args:
            checkpoint_path: A file written by a fit of this module.
            map_location: The device of the tensors.
            **settings: Constructor arguments that replace those saved by `save_hyperparameters`.

        Raises:
            InputError: The file is not a checkpoint that can be read safely.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        return cls._from_checkpoint(checkpoint, checkpoint.get("hyper_parameters", {}) | settings)

    @classmethod
    def _from_checkpoint(cls, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Self:
        module = cls(**settings)
        module.on_load_checkpoint(dict(checkpoint))
        module.load_state_dict(checkpoint["state_dict"])
        return module
