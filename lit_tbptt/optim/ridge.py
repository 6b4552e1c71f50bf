"""Ridge regression: trains the linear readout of a task in closed form, in one pass over the data.

The readout's weights W minimize |X W - Y|^2 + l2 |W|^2, where the rows of X are the readout's inputs at the scored time
steps (and a one for the bias), those of Y their targets: W = (X^T X + l2 I)^-1 X^T Y.

Kept are neither the rows nor X^T X but a triangular R with R^T R = [X Y]^T [X Y], to which rows are added by a QR
decomposition. It takes as much memory as X^T X. Rounding X^T X to float64 would limit l2 to about 1e-16 of its largest
eigenvalue, which echo-state networks need smaller: the prediction in `examples/echo_state.py` gets four times as bad.
"""

import math
from collections.abc import Iterable
from typing import Self

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank
from lit_tbptt.tbptt.state import State, reset_lanes
from lit_tbptt.tbptt.task import Task, initial_state_for, outputs_and_state
from lit_tbptt.tbptt.window import Batch, Window


class RidgeReadout:
    """Trains a task's linear readout by ridge regression; the rest of the task stays as it is.

    ```
    RidgeReadout(task, task.readout).add(lanes).solve(l2=1e-8)
    ```

    `add` runs the task in eval mode over windows, with the state carried and reset as in training. Time steps that the
    lanes mask, such as the `burn_in` ones after a reset, are not counted. It computes in float64. Its memory grows with
    the square of the readout's inputs; the data is not kept. `solve` may be called with one `l2` after another.

    Args:
        task: Its `predict_window` returns what the readout returns.
        readout: The layer of the task that is trained, with or without a bias. The bias counts as one of the weights.
        rank: The rank of this process, if several have lanes of the same data. All must call `solve` together.

    Attributes:
        num_targets: The time steps that this process has counted.

    Raises:
        InputError: The task defines no `predict_window`, or the readout is another kind of layer.
    """

    def __init__(self, task: Task, readout: nn.Linear, rank: Rank | None = None) -> None:
        if getattr(task.predict_window, "__func__", None) is Task.predict_window:
            raise InputError(
                f"{type(task).__name__} must define predict_window(window, state), which returns the outputs of the "
                "readout and the state: window_loss does not show them"
            )
        if not isinstance(readout, nn.Linear):
            raise InputError(f"readout is a {type(readout).__name__}: it must be the torch.nn.Linear of the task")
        self.task = task
        self.readout = readout
        self.rank = rank or Rank()
        self.num_targets = 0
        self._num_inputs = readout.in_features + (readout.bias is not None)
        self._num_columns = self._num_inputs + readout.out_features
        self._rows: list[Tensor] = []  # of [X Y], or of R; few
        self._num_rows = 0

    @torch.no_grad()
    def add(self, batches: Iterable[Batch]) -> Self:
        """Adds the scored time steps of some batches; every lane starts from its initial state.

        Args:
            batches: Such as `SequenceLanes`. Their targets are floating-point numbers.

        Raises:
            InputError: The targets are no such numbers, or the task's outputs are not those of the readout.
        """
        training = [module for module in _modules(self.task) if module.training]
        for module in training:
            module.training = False
        calls: list[tuple[Tensor, Tensor]] = []
        hook = self.readout.register_forward_hook(lambda module, inputs, outputs: calls.append((inputs[0], outputs)))
        self.task.noise, state = None, None  # no noise of the last window of training
        try:
            for batch in batches:
                if not isinstance(batch, Batch):
                    raise InputError(
                        f"batches has a {type(batch).__name__}: give an iterable of Batches, such as SequenceLanes"
                    )
                for window in batch.to(self.readout.weight.device).windows:
                    if window.num_lanes:  # there may be fewer lanes than ranks
                        state = self._entering(window.check(), state)
                        outputs, state = outputs_and_state(self.task, window, state)
                        self._count(window, self._inputs(calls, outputs))
                        calls.clear()
        finally:
            hook.remove()
            for module in training:
                module.training = True
        return self

    def _entering(self, window: Window, carried: State | None) -> State:
        initial = initial_state_for(self.task, window, self.task.initial_state(window.num_lanes))
        if carried is None or not getattr(self.task, "carry_state", True):
            return initial
        return carried if window.reset is None else reset_lanes(window.reset, initial, carried)

    def _inputs(self, calls: list[tuple[Tensor, Tensor]], outputs: object) -> Float[Tensor, "lane time feature"]:
        """Returns the inputs of the readout in this window."""
        task = type(self.task).__name__
        if len(calls) != 1:
            raise InputError(
                f"readout: {task}.predict_window calls it {len(calls)} times per window: it must be the layer that "
                "makes all of the outputs, in one call"
            )
        inputs, returned = calls[0]
        if not isinstance(outputs, Tensor) or not torch.equal(_values(outputs), _values(returned)):
            raise InputError(
                f"readout: {task}.predict_window returns something else than the outputs of this layer, which are what "
                "is fitted to the targets: return them as they are, and transform the targets in the data instead"
            )
        return inputs

    def _count(self, window: Window, inputs: Float[Tensor, "lane time feature"]) -> None:
        targets = window.targets
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
            raise InputError(
                f"targets of {kind}: ridge regression needs one tensor of floating-point targets; train the readout of "
                "tokens and other classes by gradient"
            )
        expected = *inputs.shape[:2], self.readout.out_features
        if targets.shape != expected and (*targets.shape, 1) != expected:
            raise InputError(
                f"targets of the shape {tuple(targets.shape)} for outputs of {expected}: the readout must have as many "
                "outputs as there are targets per time step"
            )
        mask = window.mask_or_ones()
        rows = [inputs[mask].double(), targets.reshape(expected)[mask].double()]
        if self.readout.bias is not None:
            rows.insert(1, rows[0].new_ones(len(rows[0]), 1))
        self._rows.append(torch.cat(rows, 1))
        self._num_rows += len(rows[0])
        self.num_targets += len(rows[0])
        if self._num_rows >= 2 * self._num_columns:
            self._reduce()

    def _reduce(self) -> Float[Tensor, "row column"]:
        """Replaces the rows by R, which has at most as many as columns."""
        empty = torch.zeros(0, self._num_columns, dtype=torch.float64, device=self.readout.weight.device)
        self._rows = [torch.linalg.qr(torch.cat([empty, *self._rows]), mode="r").R]
        self._num_rows = len(self._rows[0])
        return self._rows[0]

    @torch.no_grad()
    def solve(self, l2: float) -> Self:
        """Sets the readout's weights from the time steps that all processes have counted.

        Args:
            l2: The penalty, in the unit of the squared inputs summed over all targets: twice as many targets go with
                twice the penalty.

        Raises:
            InputError: `l2` is negative or infinite; no target was counted; the inputs or targets are not finite; or
                the inputs are linearly dependent and `l2` is too small to tell them apart.
        """
        if not 0 <= l2 < math.inf:
            raise InputError(f"l2={l2}: must be a number, 0 or more")
        factors = self._of_all_ranks(self._reduce())
        if not len(factors):
            raise InputError("no target has been counted: call add(batches) first")
        penalty = l2**0.5 * torch.eye(self._num_inputs, self._num_columns).to(factors)
        factor = torch.linalg.qr(torch.cat([factors, penalty]), mode="r").R[: self._num_inputs]
        if not factor.isfinite().all():
            raise InputError("the readout's inputs or its targets are nan or inf at a scored time step")
        inputs, targets = factor.split([self._num_inputs, self.readout.out_features], 1)
        scale = inputs.diagonal().abs()
        if scale.min() <= len(inputs) * torch.finfo(inputs.dtype).eps * scale.max():
            raise InputError(
                f"l2={l2}: the readout's {len(inputs)} inputs are linearly dependent, to the precision of float64, "
                f"over the {self.num_targets} targets counted in this process; use a larger l2, or more data"
            )
        weights = torch.linalg.solve_triangular(inputs, targets, upper=True).t()
        if self.readout.bias is not None:
            self.readout.bias.copy_(weights[:, -1])
            weights = weights[:, :-1]
        self.readout.weight.copy_(weights)
        return self

    def _of_all_ranks(self, factor: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
        if self.rank.num_ranks == 1:
            return factor
        ours = factor.new_zeros(self._num_columns, self._num_columns)
        ours[: len(factor)] = factor
        factors = [torch.empty_like(ours) for _ in range(self.rank.num_ranks)]
        dist.all_gather(factors, ours)
        rows = torch.cat(factors)
        return rows[rows.any(1)]  # the others are padding


def _values(outputs: Tensor) -> Tensor:
    return outputs.reshape(-1).nan_to_num()  # a nan does not equal itself


def _modules(task: Task) -> Iterable[nn.Module]:
    return task.modules() if isinstance(task, nn.Module) else ()
