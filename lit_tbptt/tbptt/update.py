"""The update: when the weights change and when the state is detached.

    windows    |--w0--|--w1--|--w2--|          an Update gets one window after another,
    run           o      o      o              runs it from the carry (with `Run`, any number of times),
    step          |      |      |              and decides when to step the optimizer.

An Update changes the weights through an `Optimizer`: three methods that a training framework implements.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.ranks import Agreement
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.task import Task, sum_penalties
from lit_tbptt.tbptt.truncation import Truncation
from lit_tbptt.tbptt.window import Window


class RunLoss(NamedTuple):
    """The result of a run over windows.

    Attributes:
        loss: The loss of this rank's lanes, summed over the scored targets, with its graph.
        penalty: The task's penalty, likewise. None: no penalty.
        carry: What is passed to the next window, still attached to the graph.
        total_loss: The summed loss of all ranks, without a graph.
        total_targets: The number of scored targets of all ranks.
    """

    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""] | None
    carry: Carry
    total_loss: Float[Tensor, ""]
    total_targets: Tensor | int


class Run:
    """Runs a task over windows from a carry, on all ranks.

    Args:
        task: The task to run.
        truncation: Truncates the graph of each window.
        agreement: Sums losses and targets over the ranks.
        repeatable: Whether a call with the same carry and window objects as the previous call draws the same random
            numbers: dropout, and everything else that uses Python's, NumPy's and torch's global generators.
    """

    def __init__(
        self, task: Task, truncation: Truncation, agreement: Agreement | None = None, repeatable: bool = False
    ) -> None:
        self.task = task
        self.truncation = truncation
        self.agreement = agreement or Agreement()
        self.repeatable = repeatable
        self._call: tuple[Any, ...] = ()
        self._random: dict[str, Any] = {}

    def __call__(self, windows: Sequence[Window], carry: Carry | None) -> RunLoss:
        """Runs over one or more windows, each with its own horizon, and sums their losses."""
        if not windows:
            raise ValueError("windows: at least one is needed")
        if self.repeatable:
            call = (carry, *windows)
            if len(call) == len(self._call) and all(map(operator.is_, call, self._call)):
                set_random_state(self._random)
            else:
                self._call, self._random = call, random_state()
        costs = []
        for number, window in enumerate(windows):
            carry = carry if carry is None or number == 0 else carry.detach()
            loss, num_targets, carry, penalty = self.truncation(self.task, window, carry)
            costs.append((loss, penalty, *self.agreement.exchange(loss, num_targets)))
        losses, penalties, total_losses, total_targets = zip(*costs, strict=True)
        assert carry is not None
        loss, total_loss, num_targets = (reduce(operator.add, each) for each in (losses, total_losses, total_targets))
        return RunLoss(loss, sum_penalties(penalties), carry, total_loss, num_targets)


@runtime_checkable
class Optimizer(Protocol):
    """The optimizer interface of an Update."""

    def zero_grad(self) -> None:
        """Clears the gradients."""

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Accumulates the gradients of a loss, averaged over ranks."""

    def step(self) -> None:
        """Updates the weights."""


class Updated(NamedTuple):
    """The result of an Update for one window.

    Attributes:
        carry: The carry for the next window.
        loss: The summed loss of all ranks, without a graph.
        num_targets: The number of targets in `loss`.
        stepped: Whether the weights changed; checkpoints can be taken after a step.
    """

    carry: Carry
    loss: Float[Tensor, ""]
    num_targets: Tensor | int
    stepped: bool


class Update(ABC):
    """Decides when the weights change.

    Args:
        loss_reduction: Whether the gradient is that of the mean or of the sum over the scored targets.

    Attributes:
        repeats: Whether the Update runs the same windows more than once; its runs are then repeatable.

    Raises:
        InputError: `loss_reduction` is neither.
    """

    repeats = False

    def __init__(self, loss_reduction: Literal["mean", "sum"] = "mean") -> None:
        if loss_reduction not in ("mean", "sum"):
            raise InputError(f"loss_reduction={loss_reduction!r}: must be mean or sum")
        self.loss_reduction = loss_reduction

    def num_steps(self, num_windows: int) -> int | None:
        """Returns the number of optimizer steps in an epoch of `num_windows`. None: not known."""
        return None

    @abstractmethod
    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, last: bool) -> Updated:
        """Processes the next window.

        Args:
            window: The window.
            carry: The carry returned for the previous window. None: every lane is reset.
            run: Runs windows.
            optimizer: Changes the weights.
            last: Whether no gradient may be pending after this window: it is the last one of the epoch, or the last one
                with a target of a batch in which there are windows without.
        """

    def objective(self, cost: RunLoss, num_ranks: int) -> Float[Tensor, ""]:
        """Returns the value to backpropagate: loss plus penalty, divided by the targets of all ranks for the mean.

        Args:
            cost: The result of a run.
            num_ranks: The number of ranks. They average their gradients, so the value is multiplied by it.
        """
        loss = cost.loss if cost.penalty is None else cost.loss + cost.penalty
        if num_ranks > 1:
            loss = loss * num_ranks
        if self.loss_reduction == "sum":
            return loss
        targets = cost.total_targets
        return loss / (targets.clamp(min=1).to(loss.dtype) if isinstance(targets, Tensor) else max(1, targets))


def pass_over(window: Window, carry: Carry | None, run: Run) -> Updated:
    """Runs a window without targets only for its carry: many optimizers change weights even if gradients are zero."""
    with torch.no_grad():
        cost = run((window,), carry)
    return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, False)


class StepPerWindow(Update):
    """Makes one optimizer step per window and detaches the carry; the default."""

    def num_steps(self, num_windows: int) -> int | None:
        return num_windows

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, last: bool) -> Updated:
        cost = run((window,), carry)
        optimizer.zero_grad()
        optimizer.backward(self.objective(cost, run.agreement.num_ranks))
        optimizer.step()
        return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, True)
