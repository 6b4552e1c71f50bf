"""Conjugate gradients as truncated Newton methods use them: stopped early, with the iterates on the way kept."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

PROGRESS = 5e-4
"""The iterations stop when the last k of them lowered the quadratic by less than k times this fraction."""

RATIO = 1.3
"""From one iterate that is kept to the next, the number of iterations grows by this factor."""

ROUNDING = 1e-24
"""Below this fraction of the gradient's square, the square of a residual in float64 is rounding."""


class Iterate(NamedTuple):
    """A point on the way.

    Attributes:
        solution: The point, flat.
        value: The quadratic there; it is 0 at the origin.
    """

    solution: Tensor
    value: float


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], gradient: Tensor, start: Tensor, max_iterations: int
) -> list[Iterate]:
    """Minimizes the quadratic `x^T A x / 2 + gradient^T x` with A given by its products.

    It stops as Martens (2010, section 4.4) does: at iteration i, if the quadratic is negative and the last
    k = max(10, i / 10) iterations lowered it by less than k times `PROGRESS` of its value.

    Args:
        product: Returns A x. A is symmetric; where it is not positive along a direction, the iterations end.
        gradient: The gradient at the origin, flat, in float64.
        start: The first iterate. If the quadratic is not below 0 there, the origin is.
        max_iterations: The largest number of iterations, at a product each.

    Returns:
        Iterates at geometrically growing distances, and the last one.
    """
    solution, residual = start, gradient
    if start.any():
        residual = product(start) + gradient
        if _value(start, residual, gradient) >= 0:
            solution, residual = start.new_zeros(start.shape), gradient
    direction, square = -residual, float(residual @ residual)
    values = [_value(solution, residual, gradient)]
    kept: list[Iterate] = []
    keep_at, smallest = 1.0, ROUNDING * float(gradient @ gradient)
    for number in range(1, max_iterations + 1):
        if not square > smallest:
            break
        curved = product(direction)
        curvature = float(direction @ curved)
        if not curvature > 0:
            break
        size = square / curvature
        solution, residual = solution + size * direction, residual + size * curved
        values.append(_value(solution, residual, gradient))
        if number >= keep_at:
            kept.append(Iterate(solution, values[-1]))
            keep_at = max(keep_at * RATIO, number + 1)
        since = max(10, number // 10)
        if number > since and values[-1] < 0 and values[-1] - values[-1 - since] > since * PROGRESS * values[-1]:
            break
        before, square = square, float(residual @ residual)
        direction = direction * (square / before) - residual
    if not kept or kept[-1].solution is not solution:
        kept.append(Iterate(solution, values[-1]))
    return kept


def _value(solution: Tensor, residual: Tensor, gradient: Tensor) -> float:
    return 0.5 * float(solution @ (residual + gradient))
