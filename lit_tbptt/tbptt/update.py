"""The update: when the weights change, and what is detached then.

    windows    |--w0--|--w1--|--w2--|          an Update is handed one window after another,
    run           o      o      o              has it run from the carry (`Run`, as often as it wants),
    step          |      |      |              and steps the optimizer when it decides to.

What an Update does to the weights goes through an `Optimizer`, three calls which a training framework can fill.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

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
    """The outcome of a run over windows.

    Attributes:
        loss: The loss of this rank's lanes, summed over the scored targets, with its graph.
        penalty: The task's penalty, likewise. None: it has none.
        carry: What is handed to the next window, still attached to the graph.
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
        task: What is run.
        truncation: Cuts each window's graph.
        agreement: Sums losses and targets over the ranks.
        repeatable: Whether a call with the carry and windows of the call before it, the same objects, draws the same
            random numbers again: dropout, and whatever else comes from Python's, NumPy's and torch's global generators.
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
        """Runs over one or more windows, each with a horizon of its own, and sums what they cost."""
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
    """What an Update does to the weights."""

    def zero_grad(self) -> None:
        """Forgets the gradients."""

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Adds the gradients of a loss; those of several ranks are averaged."""

    def step(self) -> None:
        """Changes the weights."""


class Updated(NamedTuple):
    """What an Update did with a window.

    Attributes:
        carry: What the next window starts from.
        loss: The summed loss that was computed, of all ranks, without a graph.
        num_targets: The number of targets it is over.
        stepped: Whether the weights have changed: a place where a checkpoint can be taken.
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
        repeats: Whether it runs the same windows more than once; its runs are then repeatable.

    Raises:
        InputError: There is no such reduction.
    """

    repeats = False

    def __init__(self, loss_reduction: Literal["mean", "sum"] = "mean") -> None:
        if loss_reduction not in ("mean", "sum"):
            raise InputError(f"loss_reduction={loss_reduction!r}: must be mean or sum")
        self.loss_reduction = loss_reduction

    def num_steps(self, num_windows: int) -> int | None:
        """Returns how many optimizer steps an epoch of windows makes. None: it is not known."""
        return None

    @abstractmethod
    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, last: bool) -> Updated:
        """Takes the next window.

        Args:
            window: The window.
            carry: What it returned for the window before. None: every lane is reset.
            run: Runs windows.
            optimizer: Changes the weights.
            last: Whether it is the last window of the epoch, after which no gradient may wait for a step.
        """

    def objective(self, cost: RunLoss, num_ranks: int) -> Float[Tensor, ""]:
        """Returns what gradients are taken of: loss and penalty, over the targets of all ranks if it is the mean.

        Args:
            cost: What a run returned.
            num_ranks: How many ranks average their gradients, where their sum is wanted.
        """
        loss = cost.loss if cost.penalty is None else cost.loss + cost.penalty
        if num_ranks > 1:
            loss = loss * num_ranks
        if self.loss_reduction == "sum":
            return loss
        targets = cost.total_targets
        return loss / (targets.clamp(min=1).to(loss.dtype) if isinstance(targets, Tensor) else max(1, targets))


class StepPerWindow(Update):
    """One optimizer step per window; nothing is backpropagated across a step beyond what the truncation runs again."""

    def num_steps(self, num_windows: int) -> int | None:
        return num_windows

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, last: bool) -> Updated:
        cost = run((window,), carry)
        optimizer.zero_grad()
        optimizer.backward(self.objective(cost, run.agreement.num_ranks))
        optimizer.step()
        return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, True)
