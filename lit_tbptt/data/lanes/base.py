"""What all kinds of lanes share: they are iterables of batches that begin at any place."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Batch


class Lanes(ABC):
    """The windows of data that are laid into parallel contiguous lanes.

    It is an iterable that Lightning takes as it is. It is no `DataLoader`: nothing can put a sampler into it, which
    would tear the lanes apart, and iterating draws nothing from the global random numbers.

    Args:
        num_lanes: Parallel lanes, those of all processes together.
        k1: Time steps (in text, tokens) per lane and window.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        local_lanes: The lanes that this process gets. None: all.

    Attributes:
        epoch: The number of the epoch that the next iteration is of.

    Raises:
        InputError: A number below 1, or lanes that are not there.
    """

    def __init__(self, num_lanes: int, k1: int, windows_per_batch: int = 1, local_lanes: range | None = None) -> None:
        for name, value in (("num_lanes", num_lanes), ("k1", k1), ("windows_per_batch", windows_per_batch)):
            if value < 1:
                raise InputError(f"{name}={value}: must be 1 or more")
        self.num_lanes = num_lanes
        self.k1 = k1
        self.windows_per_batch = windows_per_batch
        self.local_lanes = range(num_lanes) if local_lanes is None else local_lanes
        if not set(self.local_lanes) <= set(range(num_lanes)):
            raise InputError(f"local_lanes={local_lanes} of num_lanes={num_lanes}: there are no such lanes")
        self.epoch = 0
        self._start: tuple[Mapping[str, Any] | None, int] = (None, 0)

    def __iter__(self) -> Iterator[Batch]:
        # Taken here and not at the first batch: what is left of an epoch may be no batch at all.
        (position, skip), self._start = self._start, (None, 0)
        return self._batches(position, skip)

    @abstractmethod
    def _batches(self, position: Mapping[str, Any] | None, skip: int) -> Iterator[Batch]:
        """Returns the batches of this epoch from a position on, without the first `skip` of them."""

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next iteration is of: what is shuffled or rotated follows it."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Returns where the next iteration begins, as `load_state_dict` takes it.

        Where a run stands in the middle of an epoch, its module knows from the batches: loaders are read ahead.
        """
        position, skip = self._start
        return {"position": position, "skip": skip, "epoch": self.epoch, "fixed": self._fixed()}

    @abstractmethod
    def _fixed(self) -> dict[str, Any]:
        """Returns what decides the windows, by argument: what a run that is continued cannot change."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration, and only that, begin later.

        Args:
            state: `position`, what a batch said of its place, or None for the start; `skip`, how many batches from
                that one on to leave out; `epoch`, the number of the epoch; what else `state_dict` has returned.

        Raises:
            InputError: The lanes that the state is of had other windows.
        """
        ours = self._fixed()
        for name, theirs in state.get("fixed", ours).items():
            if ours.get(name) != theirs:
                raise InputError(
                    f"{name}={ours.get(name)}, where the run to be resumed has {name}={theirs}: a resumed run cannot "
                    "change it, since its windows would be others; keep it, or start a new run from these weights"
                )
        self._start = (state["position"], state["skip"])
        self.epoch = state["epoch"]

    def _sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("num_lanes", "k1", "windows_per_batch")}
