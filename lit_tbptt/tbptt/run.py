"""Runs a task over windows from a carry, as often as an update asks for it."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.ranks import Agreement
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.gauss_newton import Linearization, linearize
from lit_tbptt.tbptt.task import Task, at_least_1
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
    """Runs a task over a window from a carry, on all ranks.

    Args:
        task: The task to run.
        truncation: Truncates the graph of each window.
        agreement: Sums losses and targets over the ranks.
        repeatable: Whether a call with the same carry and window as the previous call draws the same random
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

    def __call__(self, window: Window, carry: Carry | None) -> RunLoss:
        """Runs over a window.

        Args:
            window: The next window.
            carry: What the window before passed on, detached unless its graph is needed. None: every lane is reset.
        """
        if self.repeatable:
            if self._call and self._call[0] is carry and self._call[1] is window:
                set_random_state(self._random)
            else:
                self._call, self._random = (carry, window), random_state()
        loss, num_targets, after, penalty = self.truncation(self.task, window, carry)
        return RunLoss(loss, penalty, after, *self.agreement.exchange(loss, num_targets))

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
        window: Window,
        carry: Carry | None,
        parameters: Iterable[Tensor],
        num_targets: Tensor | int,
        hidden: bool = False,
    ) -> Linearization:
        """Linearizes a run that was made before, with its random numbers, for products with the curvature.

        Args:
            window: The window of the run.
            carry: Its carry.
            parameters: What a vector belongs to.
            num_targets: The targets of the run, of all ranks.
            hidden: Whether to keep all hidden states too.
        """
        set_random_state(self._random)
        divisor = at_least_1(num_targets) if self.loss_reduction == "mean" else 1
        sum_over_ranks = self.agreement.sum if self.agreement.num_ranks > 1 else None
        return linearize(self.task, self.truncation, (window,), carry, parameters, divisor, hidden, sum_over_ranks)

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
