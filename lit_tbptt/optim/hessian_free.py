"""Hessian-free optimization: truncated Newton steps from Gauss-Newton products.

Martens 2010, "Deep learning via Hessian-free optimization"; Martens & Sutskever 2011, "Learning recurrent neural
networks with Hessian-free optimization". One step, on one mini-batch:

    gradient g, products with G         conjugate gradients on (G + damping I) d = -g, from the last step's d
    iterates on the way                 backtrack to the first one, from the last, that has the least loss
    reduction ratio                     (loss at d - loss) / (what the quadratic without damping promised)
    damping                             times 2/3 if the ratio is above 3/4, times 3/2 if it is below 1/4
    line search                         shorten d until the loss falls as much as its slope promises
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_tbptt.errors import InputError
from lit_tbptt.optim.conjugate_gradients import Iterate, conjugate_gradients

BOOST = 3 / 2
"""The factor of the damping: by it if the quadratic is trusted too far, by its inverse if not far enough."""

SUFFICIENT, SHORTER, MAX_TRIALS = 1e-2, 0.8, 60
"""The line search: the share of the slope's promise that is enough, the factor from trial to trial, their number."""


class Linearized(Protocol):
    """What products are asked from; `lit_tbptt.tbptt.gauss_newton.Linearization` is one."""

    def product(self, vector: list[Tensor], structural: float = 0.0) -> list[Tensor]:
        """Returns the products of the Gauss-Newton matrix, plus `structural` times that of the hidden states."""


class HessianFree(Optimizer):
    """Truncated Newton steps by conjugate gradients on Gauss-Newton products, damped by Levenberg-Marquardt.

    The closure given to `step` clears the gradients, computes those of the mean loss and returns the loss. It always
    runs the same mini-batch with the same dropout masks: large mini-batches are what this method is made for. Before
    each step the attributes `linearize` and, if wanted, `loss_only` are set; the training loop of this package does so
    for a task that defines `predict_window` and `outputs_loss`. By hand:

        from lit_tbptt.tbptt.gauss_newton import Linearization

        optimizer = HessianFree(model.parameters())

        def closure():
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.linearize = lambda: Linearization(
            model(inputs), lambda outputs: cross_entropy(outputs, targets), model.parameters()
        )
        optimizer.loss_only = lambda: cross_entropy(model(inputs), targets)
        optimizer.step(closure)

    Its state holds the start of the next conjugate gradients and the counts `num_gradients` (calls of the closure),
    `num_linearizations`, `num_products` and `num_losses` (losses without a gradient), and of the last step the
    `reduction_ratio` and `step_size` of the line search, 0 where no step lowered the loss.

    Args:
        params: The parameters, in one group.
        lr: The first step size of the line search, as a factor of the solution.
        damping: The first damping. The present one is saved and changes with every step.
        max_iterations: The largest number of conjugate-gradient iterations a step, each at the cost of a product.
        start_decay: The conjugate gradients start from their last solution times this.
        structural_damping: The weight of the change of hidden states, as a factor of the damping (Martens & Sutskever
            2011, with squared differences). 0: none.

    Attributes:
        linearize: Returns the outputs and loss linearized at the present weights, with the hidden states if
            `structural_damping` is not 0.
        loss_only: Returns the loss at the present weights without gradients. None: the closure is called instead.

    Raises:
        InputError: An argument is out of range, or there are several parameter groups.
    """

    needs_closure = True
    linearize: Callable[[], Linearized] | None = None
    loss_only: Callable[[], Tensor] | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        damping: float = 1.0,
        max_iterations: int = 100,
        start_decay: float = 0.95,
        structural_damping: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("damping", damping)):
            if not 0 < value < math.inf:
                raise InputError(f"{name}={value}: must be above 0")
        if max_iterations < 1:
            raise InputError(f"max_iterations={max_iterations}: must be 1 or more")
        if not 0 <= start_decay <= 1:
            raise InputError(f"start_decay={start_decay}: must be from 0 to 1")
        if not 0 <= structural_damping < math.inf:
            raise InputError(f"structural_damping={structural_damping}: must be 0 or more")
        options = {
            "lr": lr,
            "damping": damping,
            "max_iterations": max_iterations,
            "start_decay": start_decay,
            "structural_damping": structural_damping,
        }
        super().__init__(params, options)
        if len(self.param_groups) != 1:
            raise InputError(
                f"params: {len(self.param_groups)} groups, and one step is computed for all parameters: give one group"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step.

        Args:
            closure: Clears the gradients, computes those of the mean loss of all ranks, and returns the loss.

        Returns:
            The loss before the step.

        Raises:
            InputError: There is no closure, or `linearize` is not set.
        """
        if closure is None:
            raise InputError("closure=None: HessianFree runs a mini-batch several times a step; give step a closure")
        if self.linearize is None:
            raise InputError(
                "linearize=None: HessianFree needs products with the curvature; train a task that defines "
                "predict_window and outputs_loss with LitTBPTT, or set optimizer.linearize as the docstring of "
                "HessianFree shows"
            )
        group = self.param_groups[0]
        weights = [parameter.clone() for parameter in group["params"]]
        loss = self._loss(closure)
        gradient = _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]])
        iterates = self._iterates(gradient)
        chosen, reached = self._backtrack(iterates, weights, closure)
        promised = self._promised(weights, gradient, chosen)
        ratio = (reached - float(loss)) / promised if promised < 0 else math.nan
        size = self._search_line(weights, chosen.solution, gradient, float(loss), reached, closure)
        state: dict[Any, Any] = self.state  # by parameter, torch says
        state["reduction_ratio"], state["step_size"] = ratio, size
        if ratio > 3 / 4:
            group["damping"] /= BOOST
        elif not ratio >= 1 / 4:  # also nan
            group["damping"] *= BOOST
        for parameter, part in zip(group["params"], self._split(iterates[-1].solution), strict=True):
            self.state[parameter]["start"] = part.clone()
        return loss

    def _iterates(self, gradient: Tensor) -> list[Iterate]:
        group, linearized = self.param_groups[0], self._linearized()
        damping, structural = group["damping"], group["damping"] * group["structural_damping"]
        starts = [self.state[p].get("start") for p in group["params"]]
        first = any(start is None for start in starts)
        start = torch.zeros_like(gradient) if first else group["start_decay"] * _flat(starts)
        return conjugate_gradients(
            lambda vector: self._product(linearized, vector, structural) + damping * vector,
            gradient,
            start,
            group["max_iterations"],
        )

    def _backtrack(
        self, iterates: list[Iterate], weights: list[Tensor], closure: Callable[[], Any]
    ) -> tuple[Iterate, float]:
        """Returns an iterate and the loss there: earlier ones are tried for as long as the loss falls."""
        chosen, reached = iterates[-1], self._loss_at(weights, iterates[-1].solution, 1.0, closure)
        for earlier in reversed(iterates[:-1]):
            loss = self._loss_at(weights, earlier.solution, 1.0, closure)
            if loss >= reached < math.inf:
                break
            chosen, reached = earlier, loss
        return chosen, reached

    def _promised(self, weights: list[Tensor], gradient: Tensor, chosen: Iterate) -> float:
        """Returns the change of the loss according to the quadratic without damping."""
        group, solution = self.param_groups[0], chosen.solution
        if not group["structural_damping"]:
            return chosen.value - 0.5 * group["damping"] * float(solution @ solution)
        self._move(weights, solution, 0.0)
        product = self._product(self._linearized(), solution, 0.0)  # the graph from before the weights moved is invalid
        return float(solution @ (0.5 * product + gradient))

    def _search_line(
        self,
        weights: list[Tensor],
        direction: Tensor,
        gradient: Tensor,
        loss: float,
        reached: float,
        closure: Callable[[], Any],
    ) -> float:
        """Sets the weights to the accepted ones and returns the step size; 0: the weights stay."""
        slope, size = float(gradient @ direction), self.param_groups[0]["lr"]
        for trial in range(MAX_TRIALS):
            if trial or size != 1:
                reached = self._loss_at(weights, direction, size, closure)
            if reached <= loss + SUFFICIENT * size * min(slope, 0.0):
                break
            size *= SHORTER
        else:
            size = 0.0
        self._move(weights, direction, size)
        return size

    def _linearized(self) -> Linearized:
        assert self.linearize is not None
        self._count("num_linearizations")
        with torch.enable_grad():
            return self.linearize()

    def _product(self, linearized: Linearized, vector: Tensor, structural: float) -> Tensor:
        self._count("num_products")
        # Without the argument unless it is needed, so that a class with products alone will do.
        options = {"structural": structural} if structural else {}
        return _flat(linearized.product(self._split(vector), **options))

    def _loss(self, closure: Callable[[], Any]) -> Tensor:
        self._count("num_gradients")
        with torch.enable_grad():
            return torch.as_tensor(closure()).detach()

    def _loss_at(self, weights: list[Tensor], direction: Tensor, size: float, closure: Callable[[], Any]) -> float:
        self._move(weights, direction, size)
        if self.loss_only is None:
            loss = float(self._loss(closure))
        else:
            self._count("num_losses")
            loss = float(self.loss_only())
        return loss if math.isfinite(loss) else math.inf

    def _move(self, weights: list[Tensor], direction: Tensor, size: float) -> None:
        for parameter, weight, part in zip(
            self.param_groups[0]["params"], weights, self._split(direction), strict=True
        ):
            parameter.copy_(weight + size * part)

    def _split(self, vector: Tensor) -> list[Tensor]:
        """Returns the parts of a flat vector that belong to the parameters, in their shapes and dtypes."""
        parameters = self.param_groups[0]["params"]
        parts = vector.split([parameter.numel() for parameter in parameters])
        return [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]

    def _count(self, name: str) -> None:
        state: dict[Any, Any] = self.state
        state[name] = state.get(name, 0) + 1


def _flat(parts: Iterable[Tensor]) -> Tensor:
    """Returns all parts in one vector in float64, for dot products that do not depend on the number of parameters."""
    return torch.cat([(part.to_dense() if part.is_sparse else part).flatten().double() for part in parts])
