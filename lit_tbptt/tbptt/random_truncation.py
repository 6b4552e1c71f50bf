"""Anticipated reweighted truncation: random cuts, whose gradient is on average that without cuts.

Tallec & Ollivier (2017), "Unbiasing truncated backpropagation through time" (arXiv:1705.08209).

    windows    |--w0--|--w1--|--w2--|--w3--|--w4--|
    cut or not        |      o      o      |              after each window, with probability c
    gradient          | <- 1/(1-c) <- 1/(1-c) |           through an edge that is not cut, times 1 / (1 - c)
    step              |                    |              at every cut
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.run import Run
from lit_tbptt.tbptt.update import Optimizer, Place, Update, Updated
from lit_tbptt.tbptt.window import Window


class FallingProbability:
    """A probability of a cut that falls with the length of a segment: (tail - 1) / ((tail - 2) mean_length + length).

    The lengths of segments follow a power law, length^-tail, whose mean is `mean_length` (exactly so for a continuous
    length). A gradient that reaches back n windows is multiplied by about n^(tail - 1), where a constant probability c
    multiplies it by (1 - c)^-n.

    Args:
        mean_length: The mean length of a segment, in windows.
        tail: The exponent of the lengths' probabilities, above 2.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(self, mean_length: float = 16.0, tail: float = 4.0) -> None:
        if not mean_length >= 1:
            raise InputError(f"mean_length={mean_length}: must be 1 window or more")
        if not 2 < tail < math.inf:
            raise InputError(f"tail={tail}: must be a number above 2, or lengths have no mean")
        self.mean_length = mean_length
        self.tail = tail

    def __call__(self, length: int) -> float:
        """Returns the probability that a segment of `length` windows, from 1, ends there."""
        return min(1.0, (self.tail - 1) / ((self.tail - 2) * self.mean_length + length))


class RandomTruncation(Update):
    """Truncates at random window boundaries, such that the gradient is on average that of full backpropagation.

    Windows are joined to a segment until a cut is drawn, with probability c after each. A step is made at the cut. The
    gradient that passes an edge without a cut is multiplied by 1 / (1 - c).

    The expected gradient is the full one for frozen weights and the sum over the windows of each window's reduced loss:
    with `loss_reduction="mean"`, every window's loss is divided by its own targets. Clipping, and optimizers that
    normalize gradients, such as Adam, are not covered. The end of an epoch ends a segment.

    A segment's graph is kept until its cut: with c = 1/16, 99.9 % of the segments have fewer than 107 windows. With a
    constant c the variance grows exponentially with the distance unless gradients vanish faster than 1 - c per window;
    `FallingProbability` avoids this.

    Args:
        probability: The probability c of a cut after a window, in (0, 1]; or a function of the segment's windows so
            far, from 1.
        seed: Determines the cuts, together with the number of the window in the run. All ranks cut at the same places.

    Raises:
        InputError: `probability` is out of its range.
    """

    spans_batches = True
    takes_context = False
    joins_windows = True

    def __init__(
        self, probability: float | FallingProbability | Callable[[int], float] = 1 / 16, seed: int = 1
    ) -> None:
        if not callable(probability) and not (isinstance(probability, int | float) and 0 < probability <= 1):
            raise InputError(
                f"probability={probability!r}: must be a number above 0 and at most 1, or a function of the number of "
                "windows since the last cut"
            )
        if seed < 0:
            raise InputError(f"seed={seed}: must be 0 or more")
        self.probability = probability
        self.seed = seed
        self._forget()

    def begin(self, run: Run) -> None:
        super().begin(run)
        self._forget()

    def _forget(self) -> None:
        self._length = 0
        self._objective: Float[Tensor, ""] | None = None
        self._step_factors: list[float] = []
        self._attached: Carry | None = None
        self._returned: Carry | None = None

    def __call__(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        cost = run(window, self._attached if self._returned is not None and carry is self._returned else carry)
        self._step_factors.append(place.step_factor)
        objective = run.objective(cost)
        self._objective = objective if self._objective is None else self._objective + objective
        return self._end_of_window(cost.carry, cost.total_loss, cost.total_targets, optimizer, place)

    def pass_over(self, window: Window, carry: Carry | None, run: Run, optimizer: Optimizer, place: Place) -> Updated:
        # With its graph: gradients of later windows pass through it.
        cost = run(window, self._attached if self._returned is not None and carry is self._returned else carry)
        return self._end_of_window(cost.carry, cost.total_loss, cost.total_targets, optimizer, place)

    def cut_probability(self, length: int) -> float:
        """Returns the probability of a cut after a segment's window number `length`, from 1."""
        c = float(self.probability(length) if callable(self.probability) else self.probability)
        if not 0 <= c <= 1:
            raise InputError(f"probability: it is {c} after {length} windows, and must be from 0 to 1")
        return c

    def draw(self, window: int) -> float:
        """Returns the number in [0, 1) that decides about a cut after a window of this number; below c it is one."""
        return float(np.random.default_rng([self.seed, window]).random())

    def _end_of_window(
        self, carry: Carry, loss: Tensor, num_targets: Tensor | int, optimizer: Optimizer, place: Place
    ) -> Updated:
        self._length += 1
        c = self.cut_probability(self._length)
        cut = self.draw(place.window) < c or place.ends_epoch
        detached = carry.detach()
        if not cut:
            self._attached = carry._replace(
                state=tree_map(lambda leaf: _scale_gradient(leaf, 1 / (1 - c)), carry.state)
            )
            self._returned = detached
            return Updated(detached, loss, num_targets, False)
        objective, factors = self._objective, self._step_factors
        self._forget()
        if objective is not None:
            optimizer.zero_grad()
            optimizer.backward(objective)
            optimizer.step(sum(factors) / len(factors))
        return Updated(detached, loss, num_targets, objective is not None)


def _scale_gradient(leaf: Tensor, factor: float) -> Tensor:
    if not leaf.requires_grad:
        return leaf
    leaf = leaf.view_as(leaf)  # the hook must not see gradients that reach the state in other ways
    leaf.register_hook(lambda gradient: gradient * factor)
    return leaf
