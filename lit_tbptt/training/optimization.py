"""The optimizer under manual optimization: its steps, clipping and schedules, which Lightning leaves to the module."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_tbptt.errors import InputError


class Schedule(NamedTuple):
    """A schedule and when it steps, in the words of Lightning's `lr_scheduler` dictionary.

    Attributes:
        scheduler: Any scheduler of torch.
        interval: `step` or `epoch`.
        frequency: It steps at every N-th of them.
        monitor: The metric that a `ReduceLROnPlateau` looks at.
        strict: Whether a metric that is not there is an error.
    """

    scheduler: LRScheduler
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True


def take_schedules(configured: Any) -> tuple[Any, list[Schedule]]:
    """Takes what `configure_optimizers` returns apart.

    Under manual optimization Lightning keeps the schedulers, to save them, but drops when they step.

    Returns:
        The same for Lightning, without what it would drop; and the schedules.

    Raises:
        InputError: There is not exactly one optimizer.
    """
    schedulers: Any = []
    optimizers = configured
    if isinstance(configured, dict):
        optimizers = configured["optimizer"]
        schedulers = [configured["lr_scheduler"]] if configured.get("lr_scheduler") is not None else []
    elif isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], (list, tuple)):
        optimizers, schedulers = configured
    optimizers = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise InputError(f"configure_optimizers must give one optimizer, and gave {optimizers}")
    schedules = [Schedule(**entry) if isinstance(entry, dict) else Schedule(entry) for entry in schedulers]
    return (optimizers, [schedule.scheduler for schedule in schedules]), schedules


class ModuleOptimizer:
    """A module's optimizer as an Update uses it: through Lightning's precision, strategy, hooks and count of steps."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._optimizer: Any = module.optimizers()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        self._module.manual_backward(loss)

    def step(self) -> None:
        self._optimizer.step()


class ManualOptimization(LightningModule):
    """A LightningModule that makes its own optimizer steps; `LitTBPTT` describes the settings.

    Attributes:
        changed_optimizer: Options that a resumed run sets, over those of the checkpoint.
        changed_schedule: Likewise of the schedule.
    """

    clip_norm: float | None
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    lr_interval: Literal["step", "epoch"] | None

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._schedules: list[Schedule] | None = None
        self.changed_optimizer: dict[str, Any] = {}
        self.changed_schedule: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        # Lightning drops when schedules step under manual optimization. Here it calls the hook, however it was defined:
        # in a subclass, through super(), by a mixin, or set on the instance as LightningCLI does.
        self._give_configure_back()  # a fit before may have failed in between
        if stage == "fit":
            self._schedules = None
            self._configure_set_here = self.__dict__.get("configure_optimizers")
            # On the instance, where Lightning looks; a type checker wants methods left alone.
            self.configure_optimizers = partial(self._take_schedules, self.configure_optimizers)  # type: ignore[method-assign]

    def _take_schedules(self, configure: Callable[[], Any]) -> Any:
        configured, self._schedules = take_schedules(configure())
        self._give_configure_back()
        return configured

    def _give_configure_back(self) -> None:
        ours = self.__dict__.get("configure_optimizers")
        if isinstance(ours, partial) and ours.func == self._take_schedules:
            del self.configure_optimizers
            if self._configure_set_here is not None:
                self.configure_optimizers = self._configure_set_here  # type: ignore[method-assign]

    def configure_optimizers(self) -> Any:
        """Makes the optimizer and the schedule that the constructor was given."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return {"optimizer": optimizer}
        scheduler: Any = self.lr_scheduler(optimizer)
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
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        fused = any(optimizer.defaults.get("fused") for optimizer in self.trainer.optimizers)
        if self.clip_norm and scaled and fused:
            raise InputError(
                f"clip_norm={self.clip_norm} with a fused optimizer and trainer.precision=16-mixed: such an "
                "optimizer unscales the gradients itself, after they would be clipped; set optimizer.fused=false, or "
                "trainer.precision=bf16-mixed"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here, and not before the step: only here are the gradients unscaled under fp16.
        if self.clip_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm")

    def change_optimizer(self) -> None:
        """Sets the options in `changed_optimizer` and `changed_schedule`, over what a checkpoint has restored.

        A learning rate is changed by the ratio of the new one to the old, wherever its schedule stands.
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

    def step_schedules(self, interval: str, count: int, metrics: Mapping[str, Any]) -> None:
        """Steps the schedules of an interval.

        Args:
            interval: `step` or `epoch`.
            count: How many of them are done.
            metrics: The values that a `ReduceLROnPlateau` may monitor, beside the trainer's.

        Raises:
            InputError: A metric that is monitored does not exist.
        """
        for schedule in self._schedules or ():
            if schedule.interval != interval or count % schedule.frequency:
                continue
            metric = None
            if isinstance(schedule.scheduler, ReduceLROnPlateau):
                known = {**metrics, **self.trainer.callback_metrics}
                value = known.get(str(schedule.monitor))
                # Process 0 decides, for a metric of the user's own may differ.
                metric = self.trainer.strategy.broadcast(None if value is None else float(value))
                if metric is None and schedule.strict and interval == "epoch":
                    raise InputError(
                        f"lr_scheduler.monitor={schedule.monitor!r}: no such metric; there are {', '.join(known)}"
                    )
                if metric is None:
                    continue
            self.lr_scheduler_step(schedule.scheduler, metric)
