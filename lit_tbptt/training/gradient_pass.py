"""Gradients of the windows of an evaluation, where Lightning computes none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_tbptt.tbptt import Batch, Carry, Run, Task, Truncation, Window, WindowLoss
from lit_tbptt.tbptt.state import State


class GradientPass:
    """A pass through a split with a carry of its own that computes the gradient of each window's loss.

    Args:
        module: The module, in eval mode: no noise is drawn.
        truncation: Truncates the gradients.
        parameters: What the gradients are of.
        window_loss: What a window costs. None: the module's `window_loss`. It may be called on any part of a window.
        resets: Whether every window starts from the initial state.
    """

    def __init__(
        self,
        module: Any,
        truncation: Truncation,
        parameters: Sequence[Tensor],
        window_loss: Callable[[Window, State], Any] | None = None,
        resets: bool = False,
    ) -> None:
        task = _InEvaluation(module, window_loss or module.window_loss)
        self._run = Run(task, truncation, loss_reduction=module.loss_reduction)
        self._parameters = parameters
        self._resets = resets
        self._carry: Carry | None = None

    def __call__(self, window: Window) -> tuple[Tensor, Tensor | int, tuple[Tensor | None, ...] | None]:
        """Returns the summed loss of a window, its number of targets, and the gradients; None without a target."""
        cost = self._run(window, None if self._resets else self._carry)
        self._carry = cost.carry.detach()
        gradients = None
        if cost.total_targets:
            gradients = torch.autograd.grad(self._run.objective(cost), self._parameters, allow_unused=True)
        return cost.total_loss, cost.total_targets, gradients


class _InEvaluation(Task):
    """A module's task without penalties, which are no part of what is reported."""

    def __init__(self, module: Any, window_loss: Callable[[Window, State], Any]) -> None:
        self.initial_state = module.initial_state  # type: ignore[method-assign]
        self.initial_state_of = module.initial_state_of  # type: ignore[method-assign]
        self.advance = module.advance  # type: ignore[method-assign]
        self._window_loss = window_loss

    def window_loss(self, window: Window, state: State) -> WindowLoss:
        return WindowLoss(*self._window_loss(window, state)[:3])


@contextmanager
def gradients_allowed(module: nn.Module) -> Iterator[None]:
    """Leaves the inference mode of an evaluation; what is made in it cannot take part in a backward pass.

    cuDNN's recurrent layers compute gradients only in train mode. They get it, without their dropout.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase) and layer.weight_ih_l0.is_cuda]
    before = [(layer.training, layer.dropout) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.dropout = True, 0.0
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for layer, (training, dropout) in zip(layers, before, strict=True):
            layer.training, layer.dropout = training, dropout


def with_own_tensors(batch: Batch) -> Batch:
    """Copies the windows of a batch that was made in inference mode."""
    return batch._replace(windows=tuple(window.map(torch.clone) for window in batch.windows))


def batches(module: Any, loader: Any) -> Iterator[Batch]:
    """Yields the batches of a loader on the module's device."""
    strategy = module.trainer.strategy
    for batch in loader:
        yield with_own_tensors(strategy.batch_to_device(batch, module.device))
