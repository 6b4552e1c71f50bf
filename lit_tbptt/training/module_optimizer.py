"""The optimizer interface of an Update, implemented with Lightning."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import ASGD, LBFGS, Optimizer

from lit_tbptt.errors import InputError
from lit_tbptt.optim import HessianFree
from lit_tbptt.tbptt.closure import WindowClosure


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
