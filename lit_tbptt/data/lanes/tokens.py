"""What lanes of token ids share: their windows are cut from an array of ids."""

from collections.abc import Iterable
from itertools import repeat, starmap
from typing import Any

import numpy as np
import torch

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.tbptt.window import Window

# In an array of token ids: no token.
NOTHING = -1


class TokenLanes(Lanes):
    """Lanes of token ids: each token is the target of the one before it.

    Args:
        eos: The id of `<eos>`.
        *sizes: Arguments of `Lanes`.

    Attributes:
        bytes_per_token: Source bytes per token, for bits per byte. None: it is not known, or bits per byte would mean
            nothing, for tokens are `<unk>`, whatever text they stand for.
    """

    bytes_per_token: float | None = None

    def __init__(self, eos: int, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.eos = eos

    def _sizes(self) -> dict[str, Any]:
        return super()._sizes() | {"eos": self.eos}

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
        return tuple(starmap(Window, parts))
