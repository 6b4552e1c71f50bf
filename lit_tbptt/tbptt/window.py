"""Windows and batches of windows: the data that the training loop receives."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


class Window(NamedTuple):
    """The next time steps of every lane, which the model processes in one call.

    Attributes:
        inputs: `[lane, time]` token ids, or `[lane, time, feature]` for other data.
        targets: What is to be predicted at each time step, `[lane, time, ...]`.
        reset: `[lane]` bool, true where a lane is reset to the initial state before this window. None: no lane is.
        mask: `[lane, time]` bool, false where nothing is scored. None: every time step is.
    """

    inputs: Shaped[Tensor, "lane time *features"]
    targets: Shaped[Tensor, "lane time *target_features"]
    reset: Bool[Tensor, "lane"] | None = None
    mask: Bool[Tensor, "lane time"] | None = None

    @property
    def num_lanes(self) -> int:
        return self.inputs.shape[0]

    @property
    def num_time_steps(self) -> int:
        return self.inputs.shape[1]

    def split(self, time_step: int) -> tuple["Window", "Window"]:
        """Splits the window before `time_step`; the reset stays with the first part."""
        first, second = slice(None, time_step), slice(time_step, None)
        mask_first, mask_second = (None, None) if self.mask is None else (self.mask[:, first], self.mask[:, second])
        return (
            Window(self.inputs[:, first], self.targets[:, first], self.reset, mask_first),
            Window(self.inputs[:, second], self.targets[:, second], None, mask_second),
        )

    def cut(self, places: Iterable[int]) -> Iterator["Window"]:
        """Splits the window before each of the given time steps; those outside the window are ignored."""
        rest, done = self, 0
        for place in sorted(set(places)):
            if done < place < self.num_time_steps:
                part, rest = rest.split(place - done)
                done = place
                yield part
        yield rest

    def pieces(self, num_time_steps: int) -> Iterator["Window"]:
        """Splits the window into pieces of `num_time_steps`; the last one may be shorter."""
        rest = self
        while rest.num_time_steps > num_time_steps:
            piece, rest = rest.split(num_time_steps)
            yield piece
        yield rest

    def map(self, function: Callable[[Tensor], Tensor]) -> "Window":
        """Returns the window with every tensor replaced by what `function` makes of it."""
        # A type checker does not see that inputs and targets are never None.
        return Window(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Window":
        """Moves the window to a device; copies to a GPU are asynchronous."""
        non_blocking = torch.device(device).type not in ("cpu", "mps")
        return self.map(lambda part: part.to(device, non_blocking=non_blocking))

    def with_reset(self, lanes: Bool[Tensor, "lane"]) -> "Window":
        """Adds resets for the lanes where `lanes` is true."""
        return self._replace(reset=lanes if self.reset is None else self.reset | lanes)

    def join(self, later: "Window") -> "Window":
        """Appends a window in which no lane is reset.

        Raises:
            ValueError: `later` has a reset, which cannot be represented inside the joined window.
        """
        if later.reset is not None:
            raise ValueError("a window with resets cannot be joined to the one before it")
        mask = None
        if self.mask is not None or later.mask is not None:
            mask = torch.cat([window.mask_or_ones() for window in (self, later)], 1)
        return Window(
            torch.cat([self.inputs, later.inputs], 1), torch.cat([self.targets, later.targets], 1), self.reset, mask
        )

    @classmethod
    def stack(cls, windows: Sequence["Window"]) -> "Window":
        """Puts the lanes of windows of the same number of time steps below each other."""
        reset = mask = None
        if any(window.reset is not None for window in windows):
            reset = torch.cat([window.reset_or_zeros() for window in windows])
        if any(window.mask is not None for window in windows):
            mask = torch.cat([window.mask_or_ones() for window in windows])
        inputs = torch.cat([window.inputs for window in windows])
        return cls(inputs, torch.cat([window.targets for window in windows]), reset, mask)

    def reset_or_zeros(self) -> Bool[Tensor, "lane"]:
        """Returns the `[lane]` reset; all false if it is None."""
        if self.reset is not None:
            return self.reset
        return torch.zeros(self.num_lanes, dtype=torch.bool, device=self.inputs.device)

    def mask_or_ones(self) -> Bool[Tensor, "lane time"]:
        """Returns the `[lane, time]` mask; all true if it is None."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.inputs.shape[:2], dtype=torch.bool, device=self.inputs.device)


class Batch(NamedTuple):
    """Up to `windows_per_batch` consecutive windows, and the position of the first one in the data.

    Attributes:
        windows: The windows, in order.
        position: Arrays and plain values from which the source of this batch can start again at exactly this batch. Of
            several processes each keeps what it alone knows under keys of its own: they are united in a checkpoint.
    """

    windows: tuple[Window, ...]
    position: Mapping[str, Any]

    def to(self, device: torch.device | str) -> "Batch":
        """Moves the windows to a device; Lightning calls this for every batch."""
        return self._replace(windows=tuple(window.to(device) for window in self.windows))
