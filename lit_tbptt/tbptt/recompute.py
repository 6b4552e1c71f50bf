"""Activation checkpointing through time: long horizons in little memory.

    segments     |----------|----------|----------|------|   of `every` time steps
    kept         s          s          s          s          the state at the start of each segment
    backward                                      <------    a segment is run again; its activations are
                                       <----------           kept only while its gradient is computed

Instead of the activations of k2 time steps, it keeps k2 / every states, the activations of one segment and torch's
record of every operation, at the price of one more forward pass (Gruslys et al. 2016, "Memory-efficient backpropagation
through time"; Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import dropout
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lit_tbptt.random_state import host_random_state, set_host_random_state
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import Task, WindowLoss
from lit_tbptt.tbptt.window import Window


class Recomputed(Task):
    """Wraps a task so that only the states between segments are kept for the backward pass.

    Dropout of `[lane, time, feature]` tensors uses the same masks as one call over the whole window. Other random
    numbers are drawn by each segment. The backward pass draws the same numbers again from Python's, NumPy's and torch's
    global generators. cuDNN, however, has its own generator for the `dropout` argument of `nn.LSTM`, `nn.GRU` and
    `nn.RNN`: use several layers and `nn.Dropout` instead, as the cores of this package do.

    Args:
        task: The task to run, after its `begin_window`. It runs again in the backward pass and must compute the same.
        every: Time steps per segment.
    """

    def __init__(self, task: Task, every: int) -> None:
        self.task, self.every, self.noise = task, every, task.noise

    def window_loss(self, window: Window, state: State) -> WindowLoss:
        return self._run(window, state, 0, window.num_time_steps)[0]

    def advance(self, window: Window, state: State) -> State:
        return self._run(window, state, window.num_time_steps, window.num_time_steps)[0].state

    def run_window(self, window: Window, state: State, num_context: int, far_edge: int) -> tuple[WindowLoss, State]:
        if type(self.task).run_window is Task.run_window:  # it draws masks for each part
            return super().run_window(window, state, num_context, far_edge)
        return self._run(window, state, num_context, far_edge)

    def _run(self, window: Window, state: State, num_context: int, far_edge: int) -> tuple[WindowLoss, State]:
        segments, start, far_edge_state = _Segments(window.num_time_steps), 0, state
        total: WindowLoss | None = None
        for segment in window.cut((*range(self.every, window.num_time_steps, self.every), far_edge)):
            length = segment.num_time_steps
            run = partial(self._run_segment, min(max(0, num_context - start), length))
            cost = checkpoint(segments.run, start, run, segment, state, use_reentrant=False, preserve_rng_state=True)
            total, state = cost if total is None else total.followed_by(cost), cost.state
            start += length
            if start == far_edge:
                far_edge_state = state
        assert total is not None
        return total, far_edge_state

    def _run_segment(self, num_context: int, segment: Window, state: State) -> WindowLoss:
        if self.task.noise is not self.noise:  # a later window may have begun
            self.task.noise = self.noise
        return self.task.run_window(segment, state, num_context, segment.num_time_steps)[0]


class _Segments(TorchFunctionMode):
    """Runs segments with slices of dropout masks that are drawn once for the whole window.

    Masks drawn per segment would be valid too, but different, so a run with `recompute_every` could not be compared to
    one without. Masks are stored, at one byte per element, by the index of the dropout call within its segment. The
    first segment determines which calls have a time axis; if a later segment makes a different call at that index, it
    draws its own mask.
    """

    def __init__(self, num_time_steps: int) -> None:
        super().__init__()
        self.num_time_steps = num_time_steps
        self.masks: dict[int, Tensor] = {}
        self.random: dict[int, Any] = {}  # of Python and NumPy before each segment; `checkpoint` handles torch
        self.part = slice(0)
        self.num_calls = 0

    def run(self, start: int, run: Callable[[Window, State], WindowLoss], segment: Window, state: State) -> WindowLoss:
        self.part, self.num_calls = slice(start, start + segment.num_time_steps), 0
        now = host_random_state()
        again = start in self.random
        set_host_random_state(self.random.setdefault(start, now))
        try:
            with self:
                return run(segment, state)
        finally:
            if again:
                set_host_random_state(now)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._dropout if func is dropout else func)(*args, **kwargs or {})

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        place, length = self.num_calls, self.part.stop - self.part.start
        self.num_calls += 1
        over_time = training and 0 < p < 1 and input.ndim > 2 and input.shape[1] == length
        if over_time and self.part.start == 0:
            # Drawn again in the backward pass, so that the generator ends in the same state as in the forward pass.
            self.masks[place] = dropout(_ones_like(input, self.num_time_steps), p) != 0
        mask = self.masks[place][:, self.part] if over_time and place in self.masks else None
        if mask is None or mask.shape != input.shape:
            return dropout(input, p, training, inplace)
        return input.mul_(mask).div_(1 - p) if inplace else input * mask / (1 - p)


def _ones_like(input: Tensor, num_time_steps: int) -> Tensor:
    """Returns ones with another number of time steps but the same memory order, in which masks are drawn."""
    order = sorted(range(input.ndim), key=input.stride, reverse=True)
    shape = [num_time_steps if axis == 1 else input.shape[axis] for axis in order]
    return input.new_ones(shape).permute([order.index(axis) for axis in range(input.ndim)])
