"""The update: when the weights change and when the state is detached.

    windows    |--w0--|--w1--|--w2--|          an Update gets one window after another,
    run           o      o      o              runs it from the carry (with `Run`, any number of times),
    step          |      |      |              and decides when to step the optimizer.

An Update changes the weights through an `Optimizer`, which a training framework implements.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.run import Run
from lit_tbptt.tbptt.task import at_least_1
from lit_tbptt.tbptt.window import Window


@runtime_checkable
class Optimizer(Protocol):
    """The optimizer interface of an Update."""

    def zero_grad(self) -> None:
        """Clears the gradients."""

    def backward(self, loss: Float[Tensor, ""], more: bool = False) -> None:
        """Accumulates the gradients of a loss, averaged over ranks.

        Args:
            loss: The loss.
            more: Whether more gradients follow before the step, so that ranks need not exchange these yet.
        """

    def scale_gradients(self, factor: Tensor | float) -> None:
        """Multiplies the gradients by a factor."""

    def step(self, factor: float = 1.0, closure: Callable[[], Tensor] | None = None) -> None:
        """Updates the weights.

        Args:
            factor: What the learning rate is multiplied by for this step.
            closure: Computes gradients and returns the loss, for optimizers that do so several times a step.
        """


class Place(NamedTuple):
    """Where a window is.

    Attributes:
        window: The number of windows in the run before it.
        batch_window: The number of windows in the batch before it.
        scored: By window of the batch, whether any process has a target there.
        last_batch: Whether the batch is the last of the epoch.
        step_factor: What the learning rate of a step after this window is multiplied by.
    """

    window: int = 0
    batch_window: int = 0
    scored: tuple[bool, ...] = (True,)
    last_batch: bool = False
    step_factor: float = 1.0

    @property
    def ends_batch(self) -> bool:
        """Whether no later window of the batch has a target."""
        return not any(self.scored[self.batch_window + 1 :])

    @property
    def ends_epoch(self) -> bool:
        """Whether no later window of the epoch has a target."""
        return self.last_batch and self.ends_batch


class Updated(NamedTuple):
    """The result of an Update for one window.

    Attributes:
        carry: The carry for the next window, detached.
        loss: The summed loss of all ranks, without a graph.
        num_targets: The number of targets in `loss`.
        stepped: Whether the weights changed; checkpoints can be taken after a step.
        evaluations: How often the loss and its gradient were computed for the step.
    """

    carry: Carry
    loss: Float[Tensor, ""]
    num_targets: Tensor | int
    stepped: bool
    evaluations: int = 1


class Update(ABC):
    """Decides when the weights change.

    Attributes:
        repeats: Whether the Update runs the same windows more than once; its runs are then repeatable.
        steps_every_window: Whether every call makes a step. If not, a checkpoint between two steps contains the run as
            it was before the first window after the last step, and a resumed run repeats these windows.
        spans_batches: Whether a batch may end without a step.
        takes_context: Whether k2 may be above k1.
        joins_windows: Whether gradients pass from one window to the one before, through the carried state.
    """

    repeats = False
    steps_every_window = False
    spans_batches = False
    takes_context = True
    joins_windows = False

    def begin(self, run: Run) -> None:
        """Called before the first window of a training. Forgets what an earlier one left, and checks the settings.

        Raises:
            InputError: A setting does not fit the Update.
        """
        k1, k2 = run.truncation.k1, run.truncation.k2
        if k2 != k1 and not self.takes_context:
            raise InputError(f"k2={k2} with k1={k1} and {type(self).__name__}, which needs k2 = k1: leave k2 out")

    def check_windows_per_batch(self, num_windows: int) -> None:  # noqa: B027 - most need no check
        """Checks the number of windows in a batch other than the last of an epoch.

        Raises:
            InputError: It does not fit the Update.
        """

    def num_steps(self, num_windows: int) -> int | None:
        """Returns the number of optimizer steps in an epoch of `num_windows`. None: not known."""
        return None

    @abstractmethod
    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        """Processes the next window that has a target.

        Args:
            window: The window.
            carry: The carry returned for the previous window. None: every lane is reset.
            run: Runs windows.
            optimizer: Changes the weights.
            place: Where the window is. After the last one of an epoch no gradient may be pending.
        """

    def pass_over(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        """Processes a window without targets: no step, since many optimizers change weights even if gradients are 0."""
        with torch.no_grad():
            cost = run(window, carry)
        return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, False)


class StepPerWindow(Update):
    """Makes one optimizer step per window and detaches the carry; the default."""

    steps_every_window = True

    def num_steps(self, num_windows: int) -> int | None:
        return num_windows

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        cost = run(window, carry)
        optimizer.zero_grad()
        optimizer.backward(run.objective(cost))
        optimizer.step(place.step_factor)
        return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, True)


class StepPerWindows(Update):
    """Makes one optimizer step per `windows_per_step` windows, with the gradient of all their losses together.

    The state is detached after every window, so memory is that of one window. For the mean, the sum of the gradients is
    divided once, by the targets of all windows. The last step of an epoch may have fewer windows.

    Args:
        windows_per_step: Windows per step; a divisor of the number of windows per batch, so that no batch ends between
            two steps.

    Raises:
        InputError: `windows_per_step` is below 1.
    """

    def __init__(self, windows_per_step: int) -> None:
        if not isinstance(windows_per_step, int) or windows_per_step < 1:
            raise InputError(f"windows_per_step={windows_per_step!r}: must be a whole number, 1 or more")
        self.windows_per_step = windows_per_step
        self._num_pending = 0

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._num_pending = 0

    def num_steps(self, num_windows: int) -> int | None:
        return -(-num_windows // self.windows_per_step)

    def check_windows_per_batch(self, num_windows: int) -> None:
        if num_windows % self.windows_per_step:
            raise InputError(
                f"windows_per_step={self.windows_per_step} with {num_windows} windows in a batch: a step must end with "
                "a batch, so that no checkpoint is between two steps; make windows_per_batch a multiple of "
                "windows_per_step"
            )

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        number = place.batch_window % self.windows_per_step
        first = place.batch_window - number
        scored = place.scored[first : first + self.windows_per_step]
        more = any(scored[number + 1 :])
        cost = run(window, carry)
        if not self._num_pending:
            optimizer.zero_grad()
            # What the loss is divided by before the true number is known: a sum could overflow under fp16.
            self._divisor = cost.total_targets * sum(scored)
            self._targets: Tensor | int = 0
            self._step_factors = 0.0
        self._num_pending += 1
        self._targets = self._targets + cost.total_targets
        self._step_factors += place.step_factor
        optimizer.backward(run.objective(cost, self._divisor), more)
        if not more:
            if run.loss_reduction == "mean":
                optimizer.scale_gradients(at_least_1(self._divisor) / at_least_1(self._targets))
            optimizer.step(self._step_factors / self._num_pending)
            self._num_pending = 0
        return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, not more)
