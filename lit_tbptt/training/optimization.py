"""Optimizer steps, clipping and schedules under manual optimization, which Lightning leaves to the module."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import _configure_optimizers, _configure_schedulers_automatic_opt
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import ASGD, LBFGS, Optimizer

from lit_tbptt.errors import InputError
from lit_tbptt.optim import HessianFree
from lit_tbptt.tbptt.closure import WindowClosure
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


def needs_closure(optimizer: Optimizer) -> bool:
    """Returns whether an optimizer evaluates the loss several times in a step."""
    return isinstance(optimizer, LBFGS) or getattr(optimizer, "needs_closure", False)


def check_closure(module: Any) -> None:
    """Checks the settings of a module whose update evaluates the loss several times in a step.

    Raises:
        InputError: The update does not do so although the optimizer needs it; or the gradients would be clipped or
            scaled, and would no longer be those of the loss.
    """
    optimizer, update = module.trainer.optimizers[0], module.update
    name = type(optimizer).__name__
    if needs_closure(optimizer) and not update.repeats:
        raise InputError(
            f"{name} evaluates a window several times in a step, and {type(update).__name__} only once: leave update "
            "and windows_per_step out"
        )
    if not update.repeats:
        return
    if module.clip_norm is not None:
        raise InputError(
            f"clip_norm={module.clip_norm} with {name}: it searches along the loss's own gradient; set clip_norm to "
            "null (None in Python)"
        )
    if getattr(module.trainer.precision_plugin, "scaler", None) is not None:
        raise InputError(
            f"trainer.precision={module.trainer.precision} with {name}: it searches along the loss's own gradient, and "
            "this precision scales it; use bf16-mixed or 32-true"
        )


class ModuleOptimizer:
    """The optimizer interface of an Update, implemented with Lightning: its precision, strategy, hooks, step count."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._optimizer: Any = module.optimizers()
        # Lightning calls this hook under automatic optimization only.
        self._before_zero_grad: list[Callable[[Optimizer], None]] = [
            partial(callback.on_before_zero_grad, module.trainer, module)
            for callback in module.trainer.callbacks
            if is_overridden("on_before_zero_grad", callback)
        ]
        if is_overridden("on_before_zero_grad", module):
            self._before_zero_grad.append(module.on_before_zero_grad)

    def zero_grad(self) -> None:
        for hook in self._before_zero_grad:
            hook(self._optimizer.optimizer)
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor, more: bool = False) -> None:
        model = self._module.trainer.strategy.model
        waits = more and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else nullcontext():
            self._module.manual_backward(loss)

    def scale_gradients(self, factor: Tensor | float) -> None:
        if isinstance(factor, float) and factor == 1.0:
            return
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def step(self, factor: float = 1.0, closure: Callable[[], Tensor] | None = None) -> None:
        optimizer = self._optimizer.optimizer
        if isinstance(closure, WindowClosure) and isinstance(optimizer, HessianFree):
            # Lightning wraps the closure, and hides what else it can do.
            group = optimizer.param_groups[0]
            optimizer.linearize = partial(closure.linearize, group["params"], bool(group["structural_damping"]))
            optimizer.loss_only = closure.loss
        if factor == 1.0:
            self._optimizer.step(closure)
            return
        if isinstance(optimizer, ASGD):
            raise InputError(
                "optimizer=ASGD with windows of varying length: torch's ASGD makes a step with the learning rate of "
                "the step before, so that a window's step would be multiplied by another window's length; use SGD, "
                "and the callback NonMonotonicAveraging for the average"
            )
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * factor
        try:
            self._optimizer.step(closure)
        finally:  # the factor is no part of the schedule, which continues from the rate before
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate


@loop_hooks
class ManualOptimization(LightningModule):
    """A LightningModule that makes its own optimizer steps; `LitTBPTT` describes the settings.

    Attributes:
        changed_optimizer: Options of the optimizer that a resumed run changes.
        changed_schedule: Options of the schedule that a resumed run changes.
        gradient_norm: The norm of the gradient over all parameters at the last step, before clipping, on its device.
            None: not computed, because there is no clipping and that step is not logged.
    """

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
        if getattr(scheduler, "num_steps", 0) is None:
            if self.trainer.max_steps < 0:
                raise InputError("lr_scheduler.num_steps is not given, and neither is trainer.max_steps: give one")
            scheduler.num_steps = self.trainer.max_steps
        config = {
            "scheduler": scheduler,
            "interval": self.lr_interval or getattr(scheduler, "interval", "epoch"),
            "monitor": getattr(scheduler, "monitor", None),
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

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
                setattr(schedule.scheduler, name, value)

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


def _gradients(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        if parameter.grad is not None:
            # The norm is not defined for sparse tensors, but it is for their values.
            yield parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
