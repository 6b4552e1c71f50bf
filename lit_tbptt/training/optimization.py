"""Clipping and schedules under manual optimization, which Lightning leaves to the module."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import _configure_optimizers, _configure_schedulers_automatic_opt
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.update import Update
from lit_tbptt.training.overrides import leave_overrides, loop_hooks, watch_overrides


def take_schedules(configured: Any) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Unpacks the result of `configure_optimizers`, as Lightning does under automatic optimization.

    Under manual optimization, Lightning keeps the schedulers, to save them, but not when they should step.

    Raises:
        InputError: There is not exactly one optimizer.
    """
    optimizers, schedulers, monitor = _configure_optimizers(configured)
    if len(optimizers) != 1:
        raise InputError(f"configure_optimizers must give one optimizer, and gave {optimizers}")
    return optimizers, _configure_schedulers_automatic_opt(schedulers, monitor)


@loop_hooks
class ManualOptimization(LightningModule):
    """A LightningModule that makes its own optimizer steps; `LitTBPTT` describes the settings.

    Attributes:
        changed_optimizer: Options of the optimizer that a resumed run changes.
        changed_schedule: Options of the schedule that a resumed run changes.
        gradient_norm: The norm of the gradient over all parameters at the last step, before clipping, on its device.
            None: not computed, because there is no clipping and that step is not logged.
    """

    update: Update
    clip_norm: float | None
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    lr_interval: Literal["step", "epoch"] | None

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._schedules: list[LRSchedulerConfig] | None = None
        self.changed_optimizer: dict[str, Any] = {}
        self.changed_schedule: dict[str, Any] = {}
        self.gradient_norm: Tensor | None = None

    def setup(self, stage: str) -> None:
        # Under manual optimization, Lightning does not keep when schedules step. So the hook is wrapped, however it was
        # defined: in a subclass, through super(), by a mixin, or set on the instance as LightningCLI does.
        watch_overrides(self)
        self._give_configure_back()  # an earlier fit may have failed before this
        if stage == "fit":
            self._schedules = None
            self._configure_set_here = self.__dict__.get("configure_optimizers")
            # Set on the instance, where Lightning looks; type checkers object to assigning a method.
            self.configure_optimizers = partial(self._take_schedules, self.configure_optimizers)  # type: ignore[method-assign]

    def teardown(self, stage: str) -> None:
        leave_overrides(self)

    def _take_schedules(self, configure: Callable[[], Any]) -> Any:
        optimizers, self._schedules = take_schedules(configure())
        for group in optimizers[0].param_groups if any(each.reduce_on_plateau for each in self._schedules) else ():
            group.setdefault("initial_lr", float(group["lr"]))  # other schedules set it; `change_optimizer` needs it
        self._give_configure_back()
        return optimizers, [schedule.scheduler for schedule in self._schedules]

    def _give_configure_back(self) -> None:
        ours = self.__dict__.get("configure_optimizers")
        if isinstance(ours, partial) and ours.func == self._take_schedules:
            del self.configure_optimizers
            if self._configure_set_here is not None:
                self.configure_optimizers = self._configure_set_here  # type: ignore[method-assign]

    def configure_optimizers(self) -> Any:
        """Creates the optimizer and the schedule given to the constructor."""
        try:
            optimizer = self.optimizer(self.parameters())
        except (ValueError, RuntimeError) as error:  # raised by torch for values that the user has set
            raise InputError(f"optimizer: {error}") from error
        if self.lr_scheduler is None:
            return {"optimizer": optimizer}
        try:
            scheduler: Any = self.lr_scheduler(optimizer)
        except ValueError as error:
            raise InputError(f"lr_scheduler: {error}") from error
        counts = getattr(scheduler, "interval", None)
        if counts is not None and self.lr_interval not in (None, counts):
            raise InputError(
                f"lr_interval={self.lr_interval!r} with {type(scheduler).__name__}, which counts by {counts}: leave "
                "lr_interval out"
            )
        if getattr(scheduler, "num_steps", 0) is None:
            scheduler.num_steps = self.estimated_steps()
            if scheduler.num_steps is None:
                raise InputError(
                    "lr_scheduler.num_steps is not given, and how many steps the fit makes is not known: give it, or "
                    "trainer.max_steps"
                )
        config = {
            "scheduler": scheduler,
            "interval": counts or self.lr_interval or "epoch",
            "monitor": getattr(scheduler, "monitor", None),
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    def estimated_steps(self) -> int | None:
        """Returns the optimizer steps of the fit: `trainer.max_steps`, or else those of `trainer.max_epochs`.

        For schedules, in place of `trainer.estimated_stepping_batches`, which counts batches. Windows without targets
        are counted, although they make no step. None: not known, as with streamed data.
        """
        trainer = self.trainer
        if trainer.max_steps >= 0:
            return trainer.max_steps
        trainer.fit_loop.setup_data()
        lanes: Any = trainer.train_dataloader
        num_windows = getattr(lanes, "num_windows", None)
        if num_windows is None or trainer.max_epochs is None or trainer.max_epochs < 0:
            return None
        windows = min(num_windows, int(trainer.num_training_batches) * lanes.windows_per_batch)
        steps = self.update.num_steps(windows)
        return None if steps is None else steps * trainer.max_epochs

    def on_fit_start(self) -> None:
        if self._schedules is None:
            raise InputError(f"{type(self).__name__}.setup(stage) must call super().setup(stage)")
        self.trainer.strategy.lr_scheduler_configs = self._schedules  # for callbacks such as LearningRateMonitor

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Not earlier: only in this hook are the gradients unscaled under fp16.
        self.gradient_norm = None
        if self.clip_norm is None and not self._logs_next_step():
            return
        precision = self.trainer.precision_plugin
        scaler = getattr(precision, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # a fused optimizer would do this in its step, after clipping
        parameters = list(precision.main_params(optimizer))
        if self.clip_norm is None:
            self.gradient_norm = get_total_norm(_gradients(parameters))
        else:
            # Not the precision plugin's clip_gradients, which refuses fused optimizers, even under bf16.
            self.gradient_norm = clip_grad_norm_(parameters, self.clip_norm)

    def _logs_next_step(self) -> bool:
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps
        return step == self.trainer.max_steps or bool(every and step % every == 0)

    def optimizer_names(self) -> list[str]:
        """Returns the class names of the optimizer and its schedules."""
        made = [*self.trainer.optimizers, *(schedule.scheduler for schedule in self._schedules or ())]
        return [type(each).__name__ for each in made]

    def change_optimizer(self) -> None:
        """Sets the options in `changed_optimizer` and `changed_schedule`, overriding those from the checkpoint.

        The current learning rate, at any point of its schedule, is multiplied by the ratio of the new rate to the old.
        """
        for group in self.trainer.optimizers[0].param_groups:
            for name, value in self.changed_optimizer.items():
                if name == "lr":
                    group["lr"] *= value / group.get("initial_lr", group["lr"])
                    group["initial_lr"] = value
                else:
                    group[name] = tuple(value) if isinstance(value, list) else value
        for schedule in self._schedules or ():
            if "lr" in self.changed_optimizer and hasattr(schedule.scheduler, "base_lrs"):
                schedule.scheduler.base_lrs = [group["initial_lr"] for group in self.trainer.optimizers[0].param_groups]
            for name, value in self.changed_schedule.items():
                _change_schedule(schedule.scheduler, name, value)

    def step_schedules(self, interval: str, count: int) -> None:
        """Steps the schedules of an interval.

        Args:
            interval: `step` or `epoch`.
            count: The number of steps or epochs done.

        Raises:
            InputError: A monitored metric does not exist.
        """
        for schedule in self._schedules or ():
            if schedule.interval != interval or count % schedule.frequency:
                continue
            metric = None
            if schedule.reduce_on_plateau:
                metrics = self.trainer.callback_metrics
                value = metrics.get(str(schedule.monitor))
                # Process 0 decides, since a metric defined by the user may differ between processes.
                metric = self.trainer.strategy.broadcast(None if value is None else float(value))
                if metric is None and schedule.strict and interval == "epoch":
                    raise InputError(
                        f"lr_scheduler.monitor={schedule.monitor!r}: no such metric; there are {', '.join(metrics)}"
                    )
                if metric is None:
                    continue
            self.lr_scheduler_step(schedule.scheduler, metric)


def _change_schedule(scheduler: Any, name: str, value: Any) -> None:
    """Changes an option of a schedule that was restored from a checkpoint.

    Raises:
        InputError: The schedule has computed something from the option, which would not change with it.
    """
    if hasattr(scheduler, name) and name not in scheduler.state_dict():
        return  # it was not restored
    now = getattr(scheduler, name, None)
    numbers = not any(isinstance(each, bool) or not isinstance(each, int | float) for each in (now, value))
    if not numbers or isinstance(scheduler, OneCycleLR):
        raise InputError(
            f"lr_scheduler.{name}={value}: a resumed run cannot change it, since {type(scheduler).__name__} reads it "
            "only when it is made; keep it, or start a new run from these weights"
        )
    setattr(scheduler, name, value)


def _gradients(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        if parameter.grad is not None:
            # The norm is not defined for sparse tensors, but it is for their values.
            yield parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
