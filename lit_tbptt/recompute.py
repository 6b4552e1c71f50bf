"""Activation checkpointing through time: long horizons in little memory.

    segments     |----------|----------|----------|------|   of `every` steps
    kept         s          s          s          s          the state at each one's start
    backward                                      <------    a segment is run again, and its steps' activations
                                       <----------           live only while its gradient is computed

What is kept falls from the activations of k2 steps to k2 / every states, the activations of one segment and what torch
notes of every operation, for one more forward pass (Gruslys et al. 2016, "Memory-efficient backpropagation through
time"; Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import dropout
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lit_tbptt.state import State
from lit_tbptt.window import Window

Run = Callable[[Window, State], tuple[Tensor | int, Tensor | int, State]]
"""Runs over a window from a state: the summed loss, the number of targets, the state after it."""


def run_in_segments(run: Run, window: Window, state: State, every: int) -> tuple[Tensor | int, Tensor | int, State]:
    """Does what `run(window, state)` does, and keeps only the states between segments for the backward pass.

    `run` must not depend on anything that changes between the forward and the backward pass. What it draws from the
    global random numbers is drawn again alike. Dropout of `[lane, time, feature]` tensors has the very masks that one
    call over the whole window would have.

    Args:
        run: What to run; it is called once more for each segment in the backward pass.
        window: The steps to run over.
        state: The state before them.
        every: Steps per segment.
    """
    loss: Tensor | int = 0
    num_targets: Tensor | int = 0
    masks, start = _DropoutMasks(window.num_steps), 0
    for segment in window.pieces(every):
        segment_loss, segment_targets, state = checkpoint(
            masks.run, start, run, segment, state, use_reentrant=False, preserve_rng_state=True
        )
        loss, num_targets = loss + segment_loss, num_targets + segment_targets
        start += segment.num_steps
    return loss, num_targets, state


class _DropoutMasks(TorchFunctionMode):
    """Gives segments their parts of dropout masks that are drawn for the whole window at once.

    Masks that were drawn segment by segment would be good ones too, but others: a run with `checkpoint_every` could
    not be compared with, or take over from, one without. They are kept, in one byte an element.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.masks: dict[int, Tensor] = {}
        self.segment = slice(0)
        self.site = 0

    def run(self, start: int, run: Run, segment: Window, state: State) -> Any:
        self.segment = slice(start, start + segment.num_steps)
        self.site = 0
        with self:
            return run(segment, state)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._dropout if func is dropout else func)(*args, **kwargs or {})

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        steps = self.segment.stop - self.segment.start
        if not training or not 0 < p < 1 or input.ndim < 3 or input.shape[1] != steps:
            return dropout(input, p, training, inplace)
        if self.segment.start == 0:
            # Again in the backward pass, where the generator stands as it did: so it ends as it did, too.
            self.masks[self.site] = dropout(_ones_like(input, self.num_steps), p) != 0
        mask = self.masks[self.site][:, self.segment]
        self.site += 1
        return input * mask / (1 - p)


def _ones_like(input: Tensor, num_steps: int) -> Tensor:
    """Returns ones with another number of steps, in the same order in memory, which masks are drawn in."""
    order = sorted(range(input.ndim), key=input.stride, reverse=True)
    shape = [num_steps if axis == 1 else input.shape[axis] for axis in order]
    return input.new_ones(shape).permute([order.index(axis) for axis in range(input.ndim)])
