"""What the two kinds of lanes share: they are iterables of batches that begin at any place."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import torch

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Batch, Window

# In an array of token ids: no token.
NOTHING = -1


class Lanes(ABC):
    """The windows of a corpus that is laid into parallel contiguous lanes.

    It is an iterable that Lightning accepts directly. It is not a `DataLoader`, so nothing can insert a sampler, which
    would break up the lanes, and iterating does not use the global random generators.

    Args:
        eos: The id of `<eos>`.
        num_lanes: Parallel lanes, those of all processes together.
        k1: Tokens per lane and window.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        local_lanes: The lanes of this process. None: all.

    Attributes:
        bytes_per_token: Source bytes per token, for bits per byte. None: it is not known, or bits per byte would mean
            nothing, for tokens are `<unk>`, whatever text they stand for.
        epoch: The number of the epoch that the next iteration is of.

    Raises:
        InputError: A number is below 1, or `local_lanes` are out of range.
    """

    bytes_per_token: float | None = None

    def __init__(
        self, eos: int, num_lanes: int, k1: int, windows_per_batch: int = 1, local_lanes: range | None = None
    ) -> None:
        for name, value in (("num_lanes", num_lanes), ("k1", k1), ("windows_per_batch", windows_per_batch)):
            if value < 1:
                raise InputError(f"{name}={value}: must be 1 or more")
        self.eos = eos
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
        for name, theirs in state.get("fixed", ours).items():
            if ours.get(name) != theirs:
                raise InputError(
                    f"{name}={ours.get(name)}, where the run to be resumed has {name}={theirs}: a resumed run cannot "
                    "change it, since its windows would be others; keep it, or start a new run from these weights"
                )
        self._start = (state["position"], state["skip"])
        self.epoch = state["epoch"]

    def _sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("num_lanes", "k1", "windows_per_batch", "eos")}

    def _cut(self, tokens: np.ndarray, resets: np.ndarray) -> tuple[Window, ...]:
        """Cuts the tokens of a batch into windows.

        Args:
            tokens: `[lane, time + 1]` ids, from the token before the first target on; NOTHING where there is none.
            resets: `[window, lane]` bool, true where a lane is reset.
        """
        nothing = tokens == NOTHING
        masks: Iterable[torch.Tensor | None] = repeat(None)
        if nothing.any():
            # Every document ends with <eos>, so a lane that is reset after a gap sees the same as any other.
            tokens = np.where(nothing, self.eos, tokens)
            scored = torch.from_numpy(~nothing[:, 1:]).split(self.k1, 1)
            masks = [None if bool(mask.all()) else mask for mask in scored]
        inputs, targets = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])
        fresh = set(np.flatnonzero(resets.any(axis=1)).tolist())
        starts = [reset if number in fresh else None for number, reset in enumerate(torch.from_numpy(resets))]
        parts = zip(inputs.split(self.k1, 1), targets.split(self.k1, 1), starts, masks, strict=False)
        return tuple(map(Window._make, parts))
