"""The carry: what one window passes to the next. In checkpoints it is stored by lane, for any number of ranks."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, detach
from lit_tbptt.tbptt.window import Window


class Carry(NamedTuple):
    """What one window passes to the next.

    Attributes:
        state: The state at the next window's far edge.
        context: The windows between the far edge and the next window, split where a lane is reset.
    """

    state: State
    context: tuple[Window, ...] = ()

    def detach(self) -> "Carry":
        """Returns the carry with its state detached from the autograd graph."""
        return self._replace(state=detach(self.state))

    def describe(self) -> dict[str, Any]:
        """Returns the carry as tensors and plain values, for a checkpoint; the state becomes the list of its leaves."""
        return {
            "state": [leaf.to("cpu", copy=True) for leaf in tree_leaves(self.state)],
            "context": [window.describe() for window in self.context],
        }

    @classmethod
    def from_descriptions(
        cls,
        descriptions: Sequence[dict[str, Any]],
        share: Callable[[int], range],
        initial_state: Callable[[int], State],
        device: torch.device,
    ) -> "Carry":
        """Restores the carry of this rank's lanes from descriptions made by any number of ranks.

        Args:
            descriptions: The results of `describe` on each rank, in the order of their lanes.
            share: Maps the total number of lanes to the lanes of this rank.
            initial_state: The task's `initial_state`, which gives the state its structure.
            device: The device of the tensors.

        Raises:
            InputError: The task's state has other tensors or shapes.
        """
        parts = [cls(part["state"], tuple(Window(*window) for window in part["context"])) for part in descriptions]
        starts = list(accumulate((_num_lanes(part) for part in parts), initial=0))
        wanted, shares = share(starts[-1]), []
        for part, start, end in zip(parts, starts, starts[1:], strict=False):
            first, last = max(wanted.start, start), min(wanted.stop, end)
            if first < last:
                shares.append(_take_lanes(part, slice(first - start, last - start)))
        # A process that gets the same lanes as before keeps the splits of its context, so all its sums stay the same.
        carry = shares[0] if len(shares) == 1 else _stack(shares or parts)
        leaves = [leaf.to(device) for leaf in carry.state]
        expected, structure = tree_flatten(initial_state(len(leaves[0]) if leaves else 0))
        if [leaf.shape for leaf in expected] != [leaf.shape for leaf in leaves]:
            raise InputError(
                f"the carried state of the checkpoint has tensors of {[tuple(leaf.shape) for leaf in leaves]}, this "
                f"model's of {[tuple(leaf.shape) for leaf in expected]}: a run resumes with the core, and with "
                "the other settings of the state, that it was trained with"
            )
        context = tuple(window.map(lambda part: part.to(device)) for window in carry.context)
        return cls(tree_unflatten(leaves, structure), context)


def _num_lanes(described: Carry) -> int:
    if described.state:
        return len(described.state[0])
    return described.context[0].num_lanes if described.context else 0


def _take_lanes(described: Carry, lanes: slice) -> Carry:
    context = tuple(window.map(lambda part: part[lanes]) for window in described.context)
    return Carry([leaf[lanes] for leaf in described.state], context)


def _stack(described: Sequence[Carry]) -> Carry:
    edges = sorted(
        {edge for part in described for edge in accumulate(window.num_time_steps for window in part.context)}
    )
    contexts = [_cut(part.context, edges) for part in described]
    state = [torch.cat(leaves) for leaves in zip(*(part.state for part in described), strict=True)]
    return Carry(state, tuple(Window.stack(windows) for windows in zip(*contexts, strict=True)))


def _cut(context: Iterable[Window], edges: Sequence[int]) -> list[Window]:
    """Splits a context, whose pieces end where one of its lanes is reset, at further places."""
    pieces: list[Window] = []
    done = 0
    for window in context:
        pieces += window.cut(edge - done for edge in edges)
        done += window.num_time_steps
    return pieces
