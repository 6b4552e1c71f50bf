"""The processes of a run: which lanes each has, and what they tell each other. Plain torch.distributed."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

WISHES = ("save", "SIGTERM", "SIGINT")
"""What a process may wish for at a window boundary."""


class Ranks(NamedTuple):
    """One process among those of a run. What it does together with the others, all must do, in the same order.

    Attributes:
        rank: Its number, from 0.
        num_ranks: How many there are.
    """

    rank: int = 0
    num_ranks: int = 1

    def share(self, num_lanes: int) -> range:
        """Returns the lanes of this process: neighbours, in order, and as evenly as it goes."""
        least, more = divmod(num_lanes, self.num_ranks)
        start = self.rank * least + min(self.rank, more)
        return range(start, start + least + (self.rank < more))

    def gather(self, value: Any) -> list[Any]:
        """Brings what every process gives, tensors and plain values, to process 0; the others get their own alone."""
        if self.num_ranks == 1:
            return [value]
        found = [None] * self.num_ranks if self.rank == 0 else None
        dist.gather_object(value, found, group=_on_cpu(dist.group.WORLD))
        return [value] if found is None else found

    def everyone(self, numbers: Sequence[int]) -> list[list[int]]:
        """Returns the numbers that every process gives, in the order of the processes."""
        if self.num_ranks == 1:
            return [list(numbers)]
        given = torch.tensor(numbers)
        found = [torch.empty_like(given) for _ in range(self.num_ranks)]
        dist.all_gather(found, given, group=_on_cpu(dist.group.WORLD))
        return [row.tolist() for row in found]


@lru_cache(maxsize=1)
def _on_cpu(world: Any) -> Any:
    """Returns the group, or one of the same processes that does not make the host wait for the GPU."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


class Agreement:
    """What the processes tell each other once a window, in one all-reduce of five numbers.

    That is the window's loss, its targets, and what each process wishes to be done at a window boundary. A wish of any
    of them is granted to all at the same boundary, so that they save, stop and go on together.

    Args:
        ranks: The processes.

    Attributes:
        granted: The wishes that are granted at the present boundary.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.num_ranks = ranks.num_ranks
        self.granted: frozenset[str] = frozenset()
        self._wishes: set[str] = set()
        self._told: Tensor | None = None
        self._event: Any = None

    def wish(self, name: str) -> None:
        """Asks for one of WISHES. A signal handler may call it."""
        self._wishes.add(name)

    def exchange(self, loss: Tensor, num_targets: Tensor | int) -> tuple[Tensor, Tensor | int]:
        """Returns the summed loss and the number of targets of all processes together."""
        loss = loss.detach()
        if self.num_ranks == 1:
            return loss, num_targets
        wishes = torch.tensor([name in self._wishes for name in WISHES], dtype=torch.float64, device=loss.device)
        told = torch.cat([loss.double()[None], torch.as_tensor(num_targets).to(wishes)[None], wishes])
        dist.all_reduce(told)
        # Read at the boundary, when a GPU has long done this and is busy with the backward pass.
        self._told = told.to("cpu", non_blocking=True)
        if told.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()
        return told[0], told[1]

    def settle(self) -> None:
        """Grants what was wished for before the last exchange. To be called once a boundary."""
        granted = set(self._wishes)
        if self.num_ranks > 1:
            if self._event is not None:
                self._event.synchronize()
            votes = [0.0] * len(WISHES) if self._told is None else self._told[2:].tolist()
            granted = {name for name, vote in zip(WISHES, votes, strict=True) if vote}
            self._told = None
        self._wishes -= granted
        self.granted = frozenset(granted)
