"""Runs a task over windows from a carry, as often as an update asks for it."""

import operator
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.ranks import Agreement
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.gauss_newton import Linearization, linearize
from lit_tbptt.tbptt.task import Task, at_least_1, sum_penalties
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
        loss_reduction: Whether the gradient is that of the mean or of the sum over the scored targets.

    Raises:
        InputError: `loss_reduction` is neither.
    """

    def __init__(
        self,
        task: Task,
        truncation: Truncation,
        agreement: Agreement | None = None,
        repeatable: bool = False,
        loss_reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        check_reduction(loss_reduction)
        self.task = task
        self.truncation = truncation
        self.agreement = agreement or Agreement()
        self.repeatable = repeatable
        self.loss_reduction = loss_reduction
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

    def objective(self, cost: RunLoss, num_targets: Tensor | int | None = None) -> Float[Tensor, ""]:
        """Returns the value to backpropagate: loss plus penalty, divided by a number of targets for the mean.

        It is multiplied by the number of ranks, because they average their gradients.

        Args:
            cost: The result of a run.
            num_targets: What to divide by. None: the targets of the run, of all ranks.
        """
        loss = cost.loss if cost.penalty is None else cost.loss + cost.penalty
        if self.agreement.num_ranks > 1:
            loss = loss * self.agreement.num_ranks
        if self.loss_reduction == "sum":
            return loss
        divisor = at_least_1(cost.total_targets if num_targets is None else num_targets)
        return loss / (divisor.to(loss.dtype) if isinstance(divisor, Tensor) else divisor)

    def linearize(
        self,
        windows: Sequence[Window],
        carry: Carry | None,
        parameters: Iterable[Tensor],
        num_targets: Tensor | int,
        hidden: bool = False,
    ) -> Linearization:
        """Linearizes a run that was made before, with its random numbers, for products with the curvature.

        Args:
            windows: The windows of the run.
            carry: Its carry.
            parameters: What a vector belongs to.
            num_targets: The targets of the run, of all ranks.
            hidden: Whether to keep all hidden states too.
        """
        set_random_state(self._random)
        divisor = at_least_1(num_targets) if self.loss_reduction == "mean" else 1
        sum_over_ranks = self.agreement.sum if self.agreement.num_ranks > 1 else None
        return linearize(self.task, self.truncation, windows, carry, parameters, divisor, hidden, sum_over_ranks)

    def total_objective(self, cost: RunLoss) -> Float[Tensor, ""]:
        """Returns the same value over the lanes of all ranks, without a graph: what the gradient is of."""
        loss = cost.total_loss
        if cost.penalty is not None:
            loss = loss + self.agreement.exchange(cost.penalty, 0)[0]
        return loss if self.loss_reduction == "sum" else loss / at_least_1(cost.total_targets)


def check_reduction(loss_reduction: str) -> None:
    """Raises InputError unless the reduction is `mean` or `sum`."""
    if loss_reduction not in ("mean", "sum"):
        raise InputError(f"loss_reduction={loss_reduction!r}: must be mean or sum")
