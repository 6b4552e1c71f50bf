"""Steps of optimizers that evaluate the loss several times, such as LBFGS and HessianFree."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.gauss_newton import Linearization
from lit_tbptt.tbptt.run import Run, RunLoss
from lit_tbptt.tbptt.update import Optimizer, Place, StepPerWindow, Updated
from lit_tbptt.tbptt.window import Window


class WindowClosure:
    """Evaluates the loss of a window as often as an optimizer asks: from the same carry, with the same random numbers.

    Args:
        window: The window.
        carry: The carry into it.
        run: Runs it; repeatable.
        optimizer: Clears and computes gradients.

    Attributes:
        first: The result of the first evaluation, at the weights before the step. None: there was none.
        evaluations: How often the loss was computed, with or without its gradient.
    """

    def __init__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer) -> None:
        self.window, self.carry, self.run, self.optimizer = window, carry, run, optimizer
        self.first: RunLoss | None = None
        self.evaluations = 0

    def __call__(self) -> Tensor:
        """Computes the gradient, and returns the loss of all ranks, without which line searches would diverge."""
        self.optimizer.zero_grad()
        cost = self._evaluated()
        self.optimizer.backward(self.run.objective(cost))
        return self.run.total_objective(cost)

    def loss(self) -> Tensor:
        """Returns the loss of all ranks without computing gradients."""
        with torch.no_grad():
            return self.run.total_objective(self._evaluated())

    def linearize(self, parameters: Iterable[Tensor], hidden: bool = False) -> Linearization:
        """Linearizes the window at the present weights; see `gauss_newton.linearize`."""
        assert self.first is not None
        return self.run.linearize(self.window, self.carry, parameters, self.first.total_targets, hidden)

    def accepted(self) -> Carry:
        """Runs the window with the accepted weights, and returns the carry for the next one."""
        with torch.no_grad():
            return self.run(self.window, self.carry).carry.detach()

    def _evaluated(self) -> RunLoss:
        cost = self.run(self.window, self.carry)
        self.evaluations += 1
        if self.first is None:
            self.first = cost._replace(loss=cost.loss.detach(), penalty=None, carry=cost.carry.detach())
        return cost


class StepWithClosure(StepPerWindow):
    """Makes one optimizer step per window, with a closure that runs the window again.

    After the step the window is run once more, with the accepted weights, and passes its state to the next window.
    """

    repeats = True

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        closure = WindowClosure(window, carry, run, optimizer)
        optimizer.step(place.step_factor, closure)
        if closure.first is None:
            raise InputError("the optimizer made a step without calling its closure: use StepPerWindow")
        loss, num_targets = closure.first.total_loss, closure.first.total_targets
        return Updated(closure.accepted(), loss, num_targets, stepped=True, evaluations=closure.evaluations)
