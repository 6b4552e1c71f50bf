"""What lanes of token ids share: their windows are cut from an array of ids."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise, repeat, starmap
from typing import Any

import numpy as np
import torch

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.data.lanes.window_lengths import WindowLengths
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Batch, Window

# In an array of token ids: no token.
NOTHING = -1


class TokenLanes(Lanes):
    """Lanes of token ids: each token is the target of the one before it.

    Args:
        eos: The id of `<eos>`.
        *sizes: Arguments of `Lanes`.
        document_reset: Whether each document begins at the start of a window.
        window_lengths: Draws the lengths of windows, up to k1. None: all have k1 tokens.

    Attributes:
        bytes_per_token: Source bytes per token, for bits per byte. None: it is not known, or bits per byte would mean
            nothing, for tokens are `<unk>`, whatever text they stand for.
    """

    bytes_per_token: float | None = None

    def __init__(
        self, eos: int, *sizes: Any, document_reset: bool = False, window_lengths: WindowLengths | None = None
    ) -> None:
        super().__init__(*sizes)
        self.eos = eos
        self.document_reset = document_reset
        self.window_lengths = window_lengths
        if window_lengths is not None:
            window_lengths.check(self.k1, document_reset)

    def _sizes(self) -> dict[str, Any]:
        lengths = None if self.window_lengths is None else repr(self.window_lengths)
        return super()._sizes() | {"eos": self.eos, "window_lengths": lengths}

    def lengths(self, epoch: int, first: int, num_windows: int) -> list[int]:
        """Returns the time steps of windows, if the epoch does not end before.

        Args:
            epoch: The number of the epoch.
            first: The number of the first window in the epoch.
            num_windows: How many windows.

        Raises:
            InputError: `window_lengths` gave a number below 1.
        """
        if self.window_lengths is None:
            return [self.k1] * num_windows
        lengths = np.minimum(self.window_lengths(epoch, first, num_windows), self.k1)
        if len(lengths) and lengths.min() < 1:
            raise InputError(f"window_lengths={self.window_lengths}: gave a window of {lengths.min()} time steps")
        return lengths.tolist()

    def _position(self, window: int, time_step: int) -> dict[str, Any]:
        """Returns the position of a batch, from the numbers of its first window and time step in the epoch."""
        return {"window": window} | ({} if self.window_lengths is None else {"time_step": time_step})

    def _place(self, position: Mapping[str, Any] | None) -> tuple[int, int]:
        """Returns the numbers of the first window and time step of a position."""
        if position is None:
            return 0, 0
        # The time step is saved and not computed from the draws before, which another version of numpy may change.
        return position["window"], position.get("time_step", position["window"] * self.k1)

    def _batch_of(self, windows: tuple[Window, ...], position: Mapping[str, Any]) -> Batch:
        if self.window_lengths is None:
            return Batch(windows, position)
        factors = tuple(window.num_time_steps / self.window_lengths.mean for window in windows)
        return Batch(windows, position, step_factors=factors)

    def _cut(self, tokens: np.ndarray, resets: np.ndarray, lengths: Sequence[int]) -> tuple[Window, ...]:
        """Cuts the tokens of a batch into windows.

        Args:
            tokens: `[lane, time + 1]` ids, from the token before the first target on; NOTHING where there is none.
            resets: `[window, lane]` bool, true where a lane is reset.
            lengths: Time steps of the windows; the tokens may end before all windows are full.
        """
        num_time_steps = tokens.shape[1] - 1
        ends = [min(end, num_time_steps) for end in accumulate(lengths)]
        sizes = [end - start for start, end in pairwise([0, *ends]) if end > start]
        nothing = tokens == NOTHING
        masks: Iterable[torch.Tensor | None] = repeat(None)
        if nothing.any():
            # Every document ends with <eos>, so a lane that is reset after a gap sees the same as any other.
            tokens = np.where(nothing, self.eos, tokens)
            scored = torch.from_numpy(~nothing[:, 1:]).split(sizes, 1)
            masks = [None if bool(mask.all()) else mask for mask in scored]
        inputs, targets = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])
        fresh = set(np.flatnonzero(resets.any(axis=1)).tolist())
        starts = [reset if number in fresh else None for number, reset in enumerate(torch.from_numpy(resets))]
        parts = zip(inputs.split(sizes, 1), targets.split(sizes, 1), starts, masks, strict=False)
        return tuple(starmap(Window, parts))
