"""Truncated backpropagation through time: how far back a gradient may go.

This is Williams & Peng's BPTT(h; h') (1990, "An efficient gradient-based algorithm for on-line training of recurrent
network trajectories") with h = k2 and h' = k1. Sutskever's thesis (2013, section 2.8.6) gave k1 and k2 their names.

One call handles one window:

                far edge                    the window's end
                   |<--------- k2 ------------->|
                   |  context     |  window     |
    ... carried ---+--------------+-------------+---> time
                   |   k2 - k1    |     k1      |
    no gradient <--|  gradient    |  losses     |

The run starts from the carried state at the far edge. It runs over the context again with the current weights, and then
over the window; only the losses of the window count. The state at the far edge of the next window becomes the carried
state. With k1 = k2 the context is empty and the far edge is the start of the window.

The carried state is returned with its graph. The caller detaches it (`update.py`), at the latest when the weights
change.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.cuda_graph import Recordings
from lit_tbptt.tbptt.recompute import Recomputed
from lit_tbptt.tbptt.state import State, detach, num_lanes, requires_grad, reset_lanes
from lit_tbptt.tbptt.task import Task, WindowLoss, check_initial_state, initial_state_for
from lit_tbptt.tbptt.window import Window


class TruncatedLoss(NamedTuple):
    """The result of one window.

    Attributes:
        loss: The loss summed over the window's scored targets.
        num_targets: The number of scored targets.
        carry: What is passed to the next window, still attached to the graph.
        penalty: The task's penalty over the window's own time steps. None: no penalty.
    """

    loss: Float[Tensor, ""]
    num_targets: Tensor | int
    carry: Carry
    penalty: Float[Tensor, ""] | None = None


class Truncation:
    """Runs a task over one window after another; the graph of each window begins `k2` time steps before its end.

    The gradient of a loss reaches back at least `k2 - k1 + 1` and at most `k2` time steps, including its own.

    Args:
        k1: Time steps per lane and window: the maximum length of a window.
        k2: The horizon. None: the same as `k1`. It may be changed between steps: a longer horizon fills up as context
            accumulates, a shorter one takes effect with the next window.
        recompute_every: Keep only every N-th state and recompute the time steps in between in the backward pass: less
            memory for more time, the same gradients; see `recompute.py`. None: keep everything.
        cuda_graph: Whether a window of `k1` time steps whose context is complete is run from a CUDA graph; see
            `cuda_graph.py`. The others run without: the first windows, and shorter ones.

    Raises:
        InputError: `k1` is below 1, `k2` below `k1`, or `recompute_every` below 2 or given with `cuda_graph`.
    """

    def __init__(
        self, k1: int, k2: int | None = None, recompute_every: int | None = None, cuda_graph: bool = False
    ) -> None:
        if k1 < 1:
            raise InputError(f"k1={k1}: a window holds at least one time step; set k1 to 1 or more")
        if recompute_every is not None and recompute_every < 2:
            raise InputError(f"recompute_every={recompute_every}: must be 2 or more; leave it out to keep everything")
        if cuda_graph and recompute_every is not None:
            raise InputError(
                f"cuda_graph=True with recompute_every={recompute_every}: a graph keeps its activations in buffers of "
                "its own; leave one of them out"
            )
        self.recordings = Recordings() if cuda_graph else None
        self.k1 = k1
        self.k2 = k1 if k2 is None else k2
        self.recompute_every = recompute_every

    @property
    def k2(self) -> int:
        """The horizon in time steps."""
        return self._k2

    @k2.setter
    def k2(self, k2: int) -> None:
        if not isinstance(k2, int):
            raise InputError(f"k2={k2!r}: must be a whole number of time steps")
        if k2 < self.k1:
            raise InputError(
                f"k2={k2} with k1={self.k1}: the horizon must cover the window, or some losses would have no gradient "
                "at all; set k2 >= k1, or leave it out for k2 = k1"
            )
        if self.recordings is not None:
            self.recordings.clear()
        self._k2 = k2

    def __call__(self, task: Task, window: Window, carry: Carry | None = None) -> TruncatedLoss:
        """Computes the loss of one window, ready for `backward`.

        Args:
            task: The task to run.
            window: The next window, of at most `k1` time steps.
            carry: The carry that the previous window returned, detached unless its graph is needed. None: every lane
                is reset.

        Raises:
            InputError: The window is longer than `k1`, has another number of lanes than the carry, or is not made of
                tensors of as many lanes and time steps.
        """
        window.check()
        if window.num_time_steps > self.k1:
            raise InputError(
                f"a window of {window.num_time_steps} time steps with k1={self.k1}: the data must be cut into windows "
                "of at most k1; give both the same k1"
            )
        initial = task.initial_state(window.num_lanes)
        if carry is None:
            check_initial_state(task, initial, window.num_lanes)
            carry = Carry(detach(initial))
            window = window.with_reset(torch.ones(window.num_lanes, dtype=torch.bool, device=window.device))
        if num_lanes(carry.state) not in (None, window.num_lanes):
            raise InputError(
                f"a window of {window.num_lanes} lanes after windows of {num_lanes(carry.state)}: the number of lanes "
                "must stay the same while the state is carried"
            )

        noise = task.begin_window(window.num_lanes)
        if task.noise is not noise:  # setting an attribute of a torch module is slow
            task.noise = noise
        carry = carry._replace(state=task.enter_window(carry.state))
        state, pieces = self._without_surplus(task, initial, carry)
        pieces = [piece.like(window) for piece in pieces]  # those of a checkpoint are plain
        num_context = sum(piece.num_time_steps for piece in pieces)
        far_edge = max(0, num_context + window.num_time_steps - (self.k2 - self.k1))
        if pieces and window.reset is None:
            pieces[-1] = pieces[-1].join(window)
        else:
            pieces.append(window)
        run = self._runner(task, num_context + window.num_time_steps)
        far_edge_state = state
        context: list[Window] = []
        total: WindowLoss | None = None
        for piece in pieces:
            length = piece.num_time_steps
            at_edge = 0 < far_edge <= length
            state = _entering(task, piece, initial, state)
            cost, state_inside = run(piece, state, min(num_context, length), far_edge if at_edge else length)
            total, state = cost if total is None else total.followed_by(cost), cost.state
            if at_edge:
                far_edge_state = state_inside
            if far_edge < length:
                context.append(piece.split(far_edge)[1] if far_edge > 0 else piece)
            num_context, far_edge = max(0, num_context - length), far_edge - length
        assert total is not None
        assert isinstance(total.loss, Tensor)
        return TruncatedLoss(total.loss, total.num_targets, Carry(far_edge_state, tuple(context)), total.penalty)

    def _runner(self, task: Task, num_time_steps: int) -> Callable[..., tuple[WindowLoss, State]]:
        if self.recompute_every is not None:
            return Recomputed(task, self.recompute_every).run_window
        # By its length alone, so that a resumed run uses a graph for the same windows.
        if self.recordings is not None and num_time_steps == self.k2:
            return partial(self.recordings.run_window, task)
        return task.run_window

    def _without_surplus(self, task: Task, initial: State, carry: Carry) -> tuple[State, list[Window]]:
        """Returns the state at the current far edge and the context after it.

        If the horizon was shortened, there is more context than needed; it is run only to get the state after it.
        """
        state, context = carry.state, list(carry.context)
        surplus = sum(piece.num_time_steps for piece in context) - (self.k2 - self.k1)
        while surplus > 0:
            piece = context.pop(0)
            if piece.num_time_steps > surplus:
                piece, rest = piece.split(surplus)
                context.insert(0, rest)
            surplus -= piece.num_time_steps
            with torch.no_grad():
                length = piece.num_time_steps
                state = task.run_window(piece, _entering(task, piece, initial, state), length, length)[0].state
        return state, context


def _entering(task: Task, piece: Window, initial: State, carried: State) -> State:
    """Returns the state that a piece is run from: the carried one, but for the lanes that are reset."""
    initial = initial_state_for(task, piece, initial)
    if piece.reset is not None:
        return reset_lanes(piece.reset, initial, carried)
    if requires_grad(initial):
        # A learned initial state takes part in every window, so that every rank has a gradient for it.
        nowhere = torch.zeros(piece.num_lanes, dtype=torch.bool, device=piece.device)
        return reset_lanes(nowhere, initial, carried)
    return carried
