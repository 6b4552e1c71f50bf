"""Gauss-Newton products: the curvature of the loss, times a vector, without a matrix.

The loss is L(z) of outputs z(theta). With J = dz/dtheta and H the Hessian of L in the outputs, the Gauss-Newton matrix
is J^T H J (Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent"). It is positive
semidefinite if L is convex in the outputs, which squared error and cross-entropy of logits are. A product takes three
derivatives:

    theta --------> outputs ------> loss         J v      the derivative, with respect to u, of u^T J, which is linear
        <-- u^T J --    <-- dL/dz --                      in a dummy u: a second backward pass instead of a forward one
                                                 H (J v)  the derivative of dL/dz
                                                 J^T ...  one more backward pass

torch's forward mode would give J v too, but not through the `nn.LSTM` of a CPU in float32, nor through every operation
that a task may use. cuDNN's recurrent layers have no second derivative, so `linearize` runs the task without cuDNN.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import Task, WindowLoss, at_least_1, loss_of_outputs, outputs_and_state
from lit_tbptt.tbptt.truncation import Truncation
from lit_tbptt.tbptt.window import Window


class Linearization:
    """The outputs of a task and its loss, linearized at the present weights.

    It keeps the graph of the outputs and that of a backward pass through them, which takes more memory than a gradient.
    It is valid until the weights change.

    Args:
        outputs: A pytree of tensors with their graph. Leaves that are not floating point are constants.
        loss_of_outputs: Maps such a pytree to the summed loss, a tensor without axes.
        parameters: The tensors that a vector belongs to.
        denominator: What the summed loss is divided by: the number of targets of all ranks, or 1.
        hidden: A pytree of hidden states with their graph, for structural damping. None: there is none.
        sum_over_ranks: Sums a flat tensor over the ranks. None: there is one rank.
    """

    def __init__(
        self,
        outputs: Any,
        loss_of_outputs: Callable[[Any], Tensor],
        parameters: Iterable[Tensor],
        denominator: Tensor | float | int = 1,
        hidden: Any = None,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.denominator = denominator
        self.has_hidden = hidden is not None
        self.sum_over_ranks = sum_over_ranks
        with torch.enable_grad():
            leaves, structure = tree_flatten(outputs)
            self._places = [leaf.detach() for leaf in leaves]
            wanted = [at for at, leaf in enumerate(leaves) if leaf.requires_grad]
            inner = [self._places[at].requires_grad_() for at in wanted]
            loss = loss_of_outputs(tree_unflatten(self._places, structure))
            self._outputs = [leaves[at] for at in wanted]
            self._inner = inner
            self._slopes = _gradients([loss], inner, None, create_graph=True)
            self._hidden = [] if hidden is None else [leaf for leaf in tree_leaves(hidden) if leaf.requires_grad]
            self._ends = [*self._outputs, *self._hidden]
            self._dummies = [torch.zeros_like(leaf, requires_grad=True) for leaf in self._ends]
            self._pulled = _gradients(self._ends, self.parameters, self._dummies, create_graph=True)

    def product(self, vector: Sequence[Tensor], structural: float = 0.0) -> list[Tensor]:
        """Returns `(J^T H J + structural * J_h^T J_h) vector / denominator`, summed over the ranks.

        Args:
            vector: A tensor for each parameter, of its shape.
            structural: The weight of the hidden states, with J_h their derivative.

        Raises:
            InputError: `structural` is not 0, and there are no hidden states.
        """
        if structural and not self.has_hidden:
            raise InputError(
                f"structural={structural}: the linearization has no hidden states; build it with linearize(..., "
                "hidden=True)"
            )
        changes = _gradients(self._pulled, self._dummies, vector)
        split = len(self._outputs)
        pushed = [*_gradients(self._slopes, self._inner, changes[:split]), *(structural * c for c in changes[split:])]
        used = slice(None) if structural else slice(split)
        product = [part / self.denominator for part in _gradients(self._ends[used], self.parameters, pushed[used])]
        if self.sum_over_ranks is None:
            return product
        flat = self.sum_over_ranks(torch.cat([part.flatten() for part in product]))
        parts = flat.split([part.numel() for part in product])
        return [part.view_as(like) for part, like in zip(parts, product, strict=True)]


def _gradients(
    ends: Sequence[Tensor], starts: Sequence[Tensor], vectors: Sequence[Tensor] | None, create_graph: bool = False
) -> list[Tensor]:
    """Returns the vector-Jacobian products of the ends that have a graph; zeros where there is none."""
    with_graph = [at for at, end in enumerate(ends) if end.requires_grad]
    wanted = [start for start in starts if start.requires_grad]  # others are frozen
    products: Sequence[Tensor] = [torch.zeros_like(start) for start in wanted]
    if with_graph and wanted:
        products = grad(
            [ends[at] for at in with_graph],
            wanted,
            None if vectors is None else [vectors[at] for at in with_graph],
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    rest = iter(products)
    return [next(rest) if start.requires_grad else torch.zeros_like(start) for start in starts]


class _Recorded(Task):
    """Runs another task as its `predict_window` and `outputs_loss`, and keeps the outputs.

    Args:
        task: The task to run.
        hidden: Whether to run every time step by itself and keep the state after it.
    """

    def __init__(self, task: Task, hidden: bool) -> None:
        self.task, self.hidden = task, hidden
        self.outputs: list[Any] = []
        self.windows: list[Window] = []
        self.states: list[State] = []
        self.initial_state_of = task.initial_state_of  # type: ignore[method-assign] # which may not be defined

    @property
    def noise(self) -> Any:
        return self.task.noise

    @noise.setter
    def noise(self, noise: Any) -> None:
        self.task.noise = noise

    def initial_state(self, num_lanes: int) -> State:
        return self.task.initial_state(num_lanes)

    def begin_window(self, num_lanes: int) -> Any:
        return self.task.begin_window(num_lanes)

    def enter_window(self, state: State) -> State:
        return self.task.enter_window(state)

    def advance(self, window: Window, state: State) -> State:
        return self.task.advance(window, state)

    def window_loss(self, window: Window, state: State) -> WindowLoss:
        total: WindowLoss | None = None
        for part in window.pieces(1) if self.hidden else (window,):
            outputs, state = outputs_and_state(self.task, part, state)
            self.outputs.append(outputs)
            self.windows.append(part)
            if self.hidden:
                self.states.append(state)
            loss, num_targets, *_ = loss_of_outputs(self.task, outputs, part)
            cost = WindowLoss(loss, num_targets, state)
            total = cost if total is None else total.followed_by(cost)
        assert total is not None
        return total

    def loss_of_outputs(self, outputs: Sequence[Any]) -> Tensor:
        """Returns the summed loss of outputs like those that were recorded."""
        parts = zip(outputs, self.windows, strict=True)
        return reduce(operator.add, (self.task.outputs_loss(each, window)[0] for each, window in parts))


def linearize(
    task: Task,
    truncation: Truncation,
    windows: Sequence[Window],
    carry: Carry | None,
    parameters: Iterable[Tensor],
    denominator: Tensor | float | int | None = None,
    hidden: bool = False,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Linearization:
    """Linearizes a task over windows, with the resets, initial states and horizon of its gradient.

    A penalty is left out. The caller gives the random generators the state they had for the gradient; then noise of
    `begin_window` is the same. Other dropout masks are, too, if `k1 = k2` and `hidden` is false: the task is then run
    over a window in one call.

    Args:
        task: The task, which defines `predict_window` and `outputs_loss`.
        truncation: Truncates the graph of each window. `recompute_every` is ignored: all activations are kept.
        windows: One or more windows; the state is detached between them.
        carry: What the window before the first one passed on. None: every lane is reset.
        parameters: The parameters that a vector belongs to.
        denominator: What the summed loss is divided by. None: the number of targets of these windows.
        hidden: Whether to keep the states after all time steps, for structural damping. The task then runs one time
            step at a time.
        sum_over_ranks: Sums a flat tensor over the ranks. None: there is one rank.

    Raises:
        InputError: The task does not define the two methods.
    """
    for name in ("predict_window", "outputs_loss"):
        if getattr(getattr(task, name), "__func__", None) is getattr(Task, name):
            raise InputError(
                f"{type(task).__name__} must define {name}: products with the curvature need predict_window(window, "
                "state) and outputs_loss(outputs, window), not window_loss alone"
            )
    recorded, truncation = _Recorded(task, hidden), Truncation(truncation.k1, truncation.k2)
    total: Tensor | int = 0
    on_cuda = windows[0].device.type == "cuda"
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False) if on_cuda else nullcontext():
        for window in windows:
            result = truncation(recorded, window, carry)
            carry, total = result.carry.detach(), total + result.num_targets
    if denominator is None:
        denominator = at_least_1(total)
    states = recorded.states if hidden else None
    return Linearization(recorded.outputs, recorded.loss_of_outputs, parameters, denominator, states, sum_over_ranks)
