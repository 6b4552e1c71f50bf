"""Steps of optimizers that evaluate the loss several times, such as LBFGS."""

import torch
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.run import Run
from lit_tbptt.tbptt.update import Optimizer, Place, StepPerWindow, Updated
from lit_tbptt.tbptt.window import Window


class StepWithClosure(StepPerWindow):
    """Makes one optimizer step per window, with a closure that runs the window again.

    Every evaluation starts from the same carry with the same random numbers, and returns the loss of all ranks, or
    line searches would diverge. After the step the window is run once more, with the accepted weights, and passes its
    state to the next window.
    """

    repeats = True

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        costs = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            cost = run((window,), carry)
            costs.append((cost.total_loss, cost.total_targets))
            optimizer.backward(run.objective(cost))
            return run.total_objective(cost)

        optimizer.step(place.step_factor, closure)
        if not costs:
            raise InputError(
                "the optimizer made a step without a call of its closure: use StepPerWindow, which needs none"
            )
        with torch.no_grad():
            accepted = run((window,), carry)
        return Updated(accepted.carry.detach(), *costs[0], stepped=True, evaluations=len(costs))
