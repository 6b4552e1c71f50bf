"""The ranks of a run: the lanes of each process, and their agreement once per window. Plain torch.distributed."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

REQUESTS = ("save", "SIGTERM", "SIGINT")
"""What a process may request for the next step boundary."""


class Rank(NamedTuple):
    """One process of a run. All ranks must call its methods other than `share` together, in the same order.

    Attributes:
        number: The rank, from 0.
        num_ranks: The number of ranks.
    """

    number: int = 0
    num_ranks: int = 1

    def share(self, num_lanes: int) -> range:
        """Returns the lanes of this rank: a contiguous range, as evenly divided as possible."""
        least, more = divmod(num_lanes, self.num_ranks)
        start = self.number * least + min(self.number, more)
        return range(start, start + least + (self.number < more))

    def gather(self, value: Any) -> list[Any]:
        """Gathers values (tensors or plain values) on rank 0; the other ranks get only their own."""
        if self.num_ranks == 1:
            return [value]
        values = [None] * self.num_ranks if self.number == 0 else None
        dist.gather_object(value, values, group=_on_cpu(dist.group.WORLD))
        return [value] if values is None else values

    def all_gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """Returns the numbers of all ranks, in rank order."""
        if self.num_ranks == 1:
            return [list(numbers)]
        ours = torch.tensor(numbers)
        rows = [torch.empty_like(ours) for _ in range(self.num_ranks)]
        dist.all_gather(rows, ours, group=_on_cpu(dist.group.WORLD))
        return [row.tolist() for row in rows]

    def any_of(self, flags: Sequence[bool]) -> tuple[bool, ...]:
        """Returns for each of the flags whether it is true on any rank; all ranks must call it with as many."""
        return tuple(map(any, zip(*self.all_gather([int(flag) for flag in flags]), strict=True)))


@lru_cache(maxsize=1)
def _on_cpu(world: Any) -> Any:
    """Returns a gloo group of the same processes, so that communication does not wait for the GPU."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


class Agreement:
    """Exchanges losses and requests between the ranks, once per window, in one all-reduce of five numbers.

    The numbers are the window's loss, its number of targets, and the requests of each rank for the next step boundary.
    If any rank makes a request, all ranks act on it at the same boundary, so they save, stop and continue together.

    Args:
        num_ranks: The number of ranks.

    Attributes:
        agreed: The requests to act on at the current boundary.
    """

    def __init__(self, num_ranks: int = 1) -> None:
        self.num_ranks = num_ranks
        self.agreed: frozenset[str] = frozenset()
        self._requests: set[str] = set()
        self._sums: Tensor | None = None
        self._event: Any = None

    def request(self, name: str) -> None:
        """Requests one of REQUESTS. May be called in a signal handler."""
        self._requests.add(name)

    def exchange(self, loss: Float[Tensor, ""], num_targets: Tensor | int) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Returns the loss and the number of targets, summed over all ranks."""
        loss = loss.detach()
        if self.num_ranks == 1:
            return loss, num_targets
        votes = torch.tensor([name in self._requests for name in REQUESTS], dtype=torch.float64, device=loss.device)
        sums = torch.cat([loss.double()[None], torch.as_tensor(num_targets).to(votes)[None], votes])
        dist.all_reduce(sums)
        # Read at the boundary; by then a GPU has finished this and is busy with the backward pass.
        self._sums = sums.to("cpu", non_blocking=True)
        if sums.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()
        return sums[0], sums[1]

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks."""
        if self.num_ranks > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def sync(self) -> None:
        """Updates `agreed` with the requests made before the last exchange. Call it once per boundary."""
        agreed = set(self._requests)
        if self.num_ranks > 1:
            if self._event is not None:
                self._event.synchronize()
            votes = [0.0] * len(REQUESTS) if self._sums is None else self._sums[2:].tolist()
            agreed = {name for name, vote in zip(REQUESTS, votes, strict=True) if vote}
            self._sums = None
        self._requests -= agreed
        self.agreed = frozenset(agreed)
