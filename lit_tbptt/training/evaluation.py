"""Evaluation: scores or predicts a split with a state of its own, and leaves the training state alone."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics import Metric, MetricCollection

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Batch, Window, WindowLoss
from lit_tbptt.tbptt.state import State, check_next_state, detach, reset_lanes, unchanged
from lit_tbptt.tbptt.task import check_initial_state, initial_state_for
from lit_tbptt.training.task_metrics import check_metrics, metric_values, update_metrics


class Evaluated(Protocol):
    """What an Evaluation asks of the module."""

    trainer: Any
    noise: Any
    evaluation_metrics: Metric | MetricCollection | None
    device: torch.device

    def initial_state(self, num_lanes: int) -> State:
        """Returns the state of lanes that are reset."""

    def initial_state_of(self, static: Any) -> State | None:
        """Returns the same, computed from what belongs to the lanes' sequences; or None."""

    def evaluation_window(self, window: Window, state: State) -> WindowLoss:
        """Returns what a window costs, and adds it to `evaluation_metrics`."""

    def prediction_window(self, window: Window, state: State) -> tuple[Any, State]:
        """Returns what is predicted for a window, and the state after it."""


class Evaluation:
    """Static evaluation: carries a state through a split and scores every target once, with frozen weights.

    A subclass that does more with a window overrides `score`.

    Attributes:
        name: What reports call it.
        reset_every: Lanes are reset every N time steps and at every window, for a model whose state is not carried.
            None: only where the data say so. The module sets it.
        num_targets: The number of targets in the last evaluation, of all ranks.
    """

    name = "static"

    def __init__(self) -> None:
        self.reset_every: int | None = None
        self.num_targets = 0.0
        self._state: State | None = None
        self._rows: Tensor | None = None

    def begin(self, module: Evaluated) -> None:
        """Forgets the state and the sums of the evaluation before."""
        self.forget_state(module)
        self._sums = torch.zeros(2, dtype=torch.float64, device=module.device)
        if module.evaluation_metrics is not None:
            check_metrics(module.evaluation_metrics, module.trainer.world_size)
            module.evaluation_metrics.reset()

    def forget_state(self, module: Evaluated) -> None:
        """Lets the next window start from the initial state."""
        module.noise = None  # of the last window of training
        self._state = None

    def add(self, module: Evaluated, batch: Batch) -> None:
        """Scores the windows of a batch."""
        for window in self._windows(batch):
            sums = [torch.as_tensor(part, device=self._sums.device) for part in self.score(module, window)]
            self._sums += torch.stack([part.detach().double() for part in sums])

    def predict(self, module: Evaluated, batch: Batch) -> Any:
        """Returns what is predicted for the windows of a batch, joined along time.

        Returns:
            What `prediction_window` gives, a pytree of tensors `[lane, time, ...]`. If the batch has `rows`, a
            dictionary of this as `outputs`, of the `mask`, and of `rows`, `[lane, time, 2]`: the numbers of the
            sequence and of the time step in it; -1, 0 in padding. None: this process has no lanes.

        Raises:
            InputError: A window's prediction is something else.
        """
        parts = []
        for window in self._windows(batch):
            state = self._entering(module, window)
            with unchanged(module, state):
                prediction, after = module.prediction_window(window, state)
            _check_prediction(prediction, window)
            check_next_state(module, state, after)
            self._state = detach(after)
            if self._rows is not None:
                rows = self._rows.to(window.device)
                prediction = {"outputs": prediction, "mask": window.mask_or_ones(), "rows": rows}
            parts.append(prediction)
        return tree_map(lambda *leaves: torch.cat(leaves, 1), *parts) if parts else None

    def score(self, module: Evaluated, window: Window) -> tuple[Tensor | int, Tensor | int]:
        """Returns the summed loss of one window and its number of targets, and keeps the state after it."""
        state = self._entering(module, window)
        with unchanged(module, state):
            cost = WindowLoss(*module.evaluation_window(window, state))
        check_next_state(module, state, cost.state)
        self._state = detach(cost.state)
        return cost.loss, cost.num_targets

    def _windows(self, batch: Batch) -> Iterator[Window]:
        """Yields the windows of a batch, cut to the length at which they are scored."""
        for number, whole in enumerate(batch.windows):
            if whole.num_lanes == 0:
                return  # there are fewer lanes than ranks
            done = 0
            for window in whole.check().pieces(self._length(whole)):
                times = range(done, done + window.num_time_steps)
                self._rows = None if batch.rows is None else _rows_in_time(batch.rows[number], times)
                done += window.num_time_steps
                yield window
        self._rows = None

    def _length(self, window: Window) -> int:
        return self.reset_every or window.num_time_steps

    def _entering(self, module: Evaluated, window: Window) -> State:
        """Returns the state before a window: that after the one before it, or in lanes that are reset the initial."""
        initial = initial_state_for(module, window, module.initial_state(window.num_lanes))
        if self._state is None or self.reset_every:
            check_initial_state(module, initial, window.num_lanes)
            return initial
        return self._state if window.reset is None else reset_lanes(window.reset, initial, self._state)

    def update_metrics(self, metrics: Metric | MetricCollection, outputs: Any, window: Window) -> None:
        """Calls `metrics.update(outputs, targets)` with the scored time steps of a window.

        A metric whose `update` has an argument `rows` gets `[target, 2]` too: the numbers of the sequence and of the
        time step in it.

        Args:
            metrics: A metric, or a collection.
            outputs: A pytree of `[lane, time, ...]`.
            window: The window that is being scored.
        """
        update_metrics(metrics, outputs, window, self._rows)

    def end(self, module: Evaluated) -> tuple[float, dict[str, float]]:
        """Returns the mean loss per target and the values of the module's metrics, of all ranks together.

        Without any target, the mean is NaN.
        """
        self._state = None
        loss, self.num_targets = module.trainer.strategy.reduce(self._sums.clone(), reduce_op="sum").tolist()
        metrics = module.evaluation_metrics
        values = {} if metrics is None else metric_values(metrics, self.num_targets)
        return loss / self.num_targets if self.num_targets else math.nan, values


def _rows_in_time(rows: Tensor, times: range) -> Tensor:
    """Returns `[lane, time, 2]` of what `Batch.rows` says of a window: the sequence, and the time step in it."""
    place = torch.arange(times.start, times.stop)
    sequences, starts, num_time_steps = rows[..., None].unbind(1)
    held = place < num_time_steps
    return torch.stack([torch.where(held, sequences, -1), torch.where(held, starts + place, 0)], -1)


def _check_prediction(prediction: Any, window: Window) -> None:
    for leaf in tree_leaves(prediction):
        if not isinstance(leaf, Tensor) or leaf.shape[:2] != (window.num_lanes, window.num_time_steps):
            what = f"a tensor of {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise InputError(
                f"what is predicted for a window of {window.num_lanes} lanes and {window.num_time_steps} time steps "
                f"has {what} in it: it must be made of tensors [lane, time, ...], so that windows can be joined; "
                "define prediction_window(window, state) to return such tensors and the state"
            )
