"""The ranks of a run: which lanes each process has, and what they agree on once a window. Plain torch.distributed."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

REQUESTS = ("save", "SIGTERM", "SIGINT")
"""What a process may ask for at a step boundary."""


class Rank(NamedTuple):
    """One process among those of a run. All ranks call `gather` and `all_gather` together, in the same order.

    Attributes:
        number: Its number, from 0.
        num_ranks: How many there are.
    """

    number: int = 0
    num_ranks: int = 1

    def share(self, num_lanes: int) -> range:
        """Returns the lanes of this rank: neighbours, in order, and as evenly as possible."""
        least, more = divmod(num_lanes, self.num_ranks)
        start = self.number * least + min(self.number, more)
        return range(start, start + least + (self.number < more))

    def gather(self, value: Any) -> list[Any]:
        """Gathers values, tensors and plain ones, on rank 0; the other ranks get only their own."""
        if self.num_ranks == 1:
            return [value]
        values = [None] * self.num_ranks if self.number == 0 else None
        dist.gather_object(value, values, group=_on_cpu(dist.group.WORLD))
        return [value] if values is None else values

    def all_gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Returns the numbers of every rank, in the order of the ranks."""
        if self.num_ranks == 1:
            return [list(numbers)]
        ours = torch.tensor(numbers)
        rows = [torch.empty_like(ours) for _ in range(self.num_ranks)]
        dist.all_gather(rows, ours, group=_on_cpu(dist.group.WORLD))
        return [row.tolist() for row in rows]


@lru_cache(maxsize=1)
def _on_cpu(world: Any) -> Any:
    """Returns the group, or one of the same processes that does not make the host wait for the GPU."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


class Agreement:
    """What the ranks tell each other once a window, in one all-reduce of five numbers.

    These are the window's loss, its targets, and what each rank requests for the next step boundary. A request of any
    rank is agreed on by all at the same boundary, so that they save, stop and go on together.

    Args:
        num_ranks: How many ranks there are.

    Attributes:
        agreed: The requests that are carried out at the present boundary.
    """

    def __init__(self, num_ranks: int = 1) -> None:
        self.num_ranks = num_ranks
        self.agreed: frozenset[str] = frozenset()
        self._requests: set[str] = set()
        self._sums: Tensor | None = None
        self._event: Any = None

    def request(self, name: str) -> None:
        """Asks for one of REQUESTS. A signal handler may call it."""
        self._requests.add(name)

    def exchange(self, loss: Float[Tensor, ""], num_targets: Tensor | int) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Returns the summed loss and the number of targets of all ranks together."""
        loss = loss.detach()
        if self.num_ranks == 1:
            return loss, num_targets
        votes = torch.tensor([name in self._requests for name in REQUESTS], dtype=torch.float64, device=loss.device)
        sums = torch.cat([loss.double()[None], torch.as_tensor(num_targets).to(votes)[None], votes])
        dist.all_reduce(sums)
        # Read at the boundary, when a GPU has long done this and is busy with the backward pass.
        self._sums = sums.to("cpu", non_blocking=True)
        if sums.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()
        return sums[0], sums[1]

    def sync(self) -> None:
        """Agrees on what was requested before the last exchange. To be called once a boundary."""
        agreed = set(self._requests)
        if self.num_ranks > 1:
            if self._event is not None:
                self._event.synchronize()
            votes = [0.0] * len(REQUESTS) if self._sums is None else self._sums[2:].tolist()
            agreed = {name for name, vote in zip(REQUESTS, votes, strict=True) if vote}
            self._sums = None
        self._requests -= agreed
        self.agreed = frozenset(agreed)
