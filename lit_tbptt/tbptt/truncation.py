"""Truncated backpropagation through time: when to step, how far back a gradient may go, what to detach.

This is Williams & Peng's BPTT(h; h') (1990, "An efficient gradient-based algorithm for on-line training of recurrent
network trajectories") with h = k2 and h' = k1. Sutskever's thesis (2013, section 2.8.6) gave k1 and k2 their names.

One call handles one window:

                far edge                    the window's end
                   |<--------- k2 ------------->|
                   |  context     |  window     |
    ... carried ---+--------------+-------------+---> time
                   |   k2 - k1    |     k1      |
    no gradient <--|  gradient    |  losses     |

The run starts from the detached state at the far edge, passes through the context again with today's weights, and then
through the window, whose losses are the only ones that count. The state that this run computes at the next window's
far edge is what is carried on. With k1 = k2 the context is empty and the far edge is the window's start.
"""

from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.recompute import Run, run_in_segments
from lit_tbptt.tbptt.state import State, detach, num_lanes, requires_grad, reset_lanes
from lit_tbptt.tbptt.window import Window


class Task(Protocol):
    """What is trained: where a lane's state begins, how it moves on, and what a window costs."""

    def initial_state(self, num_lanes: int) -> State:
        """Returns the state of lanes that start afresh, lane axis first in every leaf."""

    def advance(self, window: Window, state: State) -> State:
        """Returns the state after the window's inputs; nothing is scored."""

    def window_loss(self, window: Window, state: State) -> tuple[Tensor, Tensor | int, State]:
        """Returns the summed loss of the window, the number of targets scored in it, and the state after it."""


class WindowLoss(NamedTuple):
    """The outcome of one window: its summed loss, the number of targets in it, and the carry for the next one."""

    loss: Tensor
    num_targets: Tensor | int
    carry: Carry


class Truncation:
    """Runs a task over one window after another and cuts the gradient `k2` tokens back from each window's end.

    A loss reaches back at least `k2 - k1 + 1` tokens, its own included, and at most `k2`.

    Args:
        k1: Tokens per lane between two optimizer steps: the longest window that is accepted.
        k2: The horizon. None: the same as `k1`.
        checkpoint_every: Keep only every N-th state for the backward pass and run the steps between again there: less
            memory for more time, the same gradients; see `recompute.py`. None: everything is kept.

    Raises:
        InputError: `k1` is below 1, `k2` below `k1`, or `checkpoint_every` below 2.
    """

    def __init__(self, k1: int, k2: int | None = None, checkpoint_every: int | None = None) -> None:
        if k1 < 1:
            raise InputError(f"k1={k1}: a window holds at least one token; set k1 to 1 or more")
        if k2 is not None and k2 < k1:
            raise InputError(
                f"k2={k2} with k1={k1}: the horizon must cover the window, or some losses would have no gradient at "
                "all; set k2 >= k1, or leave it out for k2 = k1"
            )
        if checkpoint_every is not None and checkpoint_every < 2:
            raise InputError(f"checkpoint_every={checkpoint_every}: must be 2 or more; leave it out to keep all steps")
        self.k1 = k1
        self.k2 = k1 if k2 is None else k2
        self.checkpoint_every = checkpoint_every

    def __call__(self, task: Task, window: Window, carry: Carry | None = None) -> WindowLoss:
        """Computes the loss of one window, ready for `backward`.

        Args:
            task: What to run.
            window: The next window, of at most `k1` steps.
            carry: What the window before it returned. None: every lane starts afresh.

        Raises:
            InputError: The window is longer than `k1`, or has another number of lanes than the carry.
        """
        if window.num_steps > self.k1:
            raise InputError(
                f"a window of {window.num_steps} steps with k1={self.k1}: the data must be cut into windows of at most "
                "k1 steps; give both the same k1"
            )
        initial = task.initial_state(window.num_lanes)
        if carry is None:
            carry = Carry(detach(initial))
            window = window.with_reset(torch.ones(window.num_lanes, dtype=torch.bool, device=window.inputs.device))
        if num_lanes(carry.state) not in (None, window.num_lanes):
            raise InputError(
                f"a window of {window.num_lanes} lanes after windows of {num_lanes(carry.state)}: the number of lanes "
                "must stay the same while the state is carried"
            )

        pieces = [*carry.context, window]
        far_edge = max(0, sum(piece.num_steps for piece in pieces) - (self.k2 - self.k1))
        state = far_edge_state = carry.state
        context: list[Window] = []
        loss: Tensor | int = 0
        num_targets: Tensor | int = 0
        done = 0
        for piece in pieces:
            run = task.window_loss if piece is window else partial(_advance, task)
            state = self._reset(piece, initial, state)
            for part in _cut(piece, far_edge - done):
                part_loss, part_targets, state = self._run(run, part, state)
                loss, num_targets = loss + part_loss, num_targets + part_targets
                done += part.num_steps
                if done > far_edge:
                    _append(context, part)
                elif done == far_edge:
                    far_edge_state = detach(state)
        assert isinstance(loss, Tensor)
        return WindowLoss(loss, num_targets, Carry(far_edge_state, tuple(context)))

    def _run(self, run: Run, part: Window, state: State) -> tuple[Tensor | int, Tensor | int, State]:
        if self.checkpoint_every is None:
            return run(part, state)
        return run_in_segments(run, part, state, self.checkpoint_every)

    @staticmethod
    def _reset(piece: Window, initial: State, carried: State) -> State:
        if piece.reset is not None:
            return reset_lanes(piece.reset, initial, carried)
        if requires_grad(initial):
            # A learned initial state takes part in every window, so that every rank has a gradient for it.
            nowhere = torch.zeros(piece.num_lanes, dtype=torch.bool, device=piece.inputs.device)
            return reset_lanes(nowhere, initial, carried)
        return carried


def _advance(task: Task, part: Window, state: State) -> tuple[int, int, State]:
    return 0, 0, task.advance(part, state)


def _cut(piece: Window, step: int) -> tuple[Window, ...]:
    return piece.split(step) if 0 < step < piece.num_steps else (piece,)


def _append(context: list[Window], part: Window) -> None:
    if context and part.reset is None:
        context[-1] = context[-1].join(part)
    else:
        context.append(part)
