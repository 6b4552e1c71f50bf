"""What all kinds of lanes share: they are iterables of batches that begin at any place."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Batch


class Lanes(ABC):
    """The windows of data that are laid into parallel contiguous lanes.

    It is an iterable that Lightning accepts directly. It is not a `DataLoader`, so nothing can insert a sampler, which
    would break up the lanes, and iterating does not use the global random generators.

    Args:
        num_lanes: Parallel lanes, those of all processes together.
        k1: Time steps (in text, tokens) per lane and window.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        local_lanes: The lanes of this process. None: all.

    Attributes:
        epoch: The number of the epoch that the next iteration is of.

    Raises:
        InputError: A number is below 1, or `local_lanes` are out of range.
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
        # Used here and not at the first batch, because the rest of an epoch may have no batch at all.
        (position, skip), self._start = self._start, (None, 0)
        return self._batches(position, skip)

    @abstractmethod
    def _batches(self, position: Mapping[str, Any] | None, skip: int) -> Iterator[Batch]:
        """Returns the batches of this epoch from a position on, skipping the first `skip` of them."""

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, which determines shuffling and rotation."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Returns where the next iteration begins, for `load_state_dict`.

        In the middle of an epoch, the module knows the position from the batches, since loaders read ahead.
        """
        position, skip = self._start
        return {"position": position, "skip": skip, "epoch": self.epoch, "fixed": self._fixed()}

    @abstractmethod
    def _fixed(self) -> dict[str, Any]:
        """Returns the arguments that determine the windows, which a resumed run cannot change."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration, and only that one, begin at a position.

        Args:
            state: The result of `state_dict`, with `position`, the position of a batch, or None for the start; `skip`,
                the number of batches to skip from there; and `epoch`, the number of the epoch.

        Raises:
            InputError: The state is from lanes with different windows.
        """
        ours = self._fixed()
        saved = state.get("fixed", ours)
        for name in dict.fromkeys((*saved, *ours)):
            if ours.get(name) != saved.get(name):
                raise InputError(
                    f"{name}={ours.get(name)}, where the run to be resumed has {name}={saved.get(name)}: a resumed run "
                    "cannot change it, since its windows would be others; keep it, or start a new run from these "
                    "weights"
                )
        self._start = (state["position"], state["skip"])
        self.epoch = state["epoch"]

    def _sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("num_lanes", "k1", "windows_per_batch")}
