"""Token ids to lanes, and lanes to windows.

tokens   t0 t1 t2 t3 t4 t5 t6 t7 t8 t9                 one flat file
lane 0   t0 t1 t2 t3 t4 | t5 ...                       num_lanes = 2: each lane is one stretch of it
lane 1   t5 t6 t7 t8 t9 |
|--k1--| |--k1--|                             a window: the next k1 tokens of every lane
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from lit_tbptt.errors import InputError
from lit_tbptt.window import Batch, Window


class StridedLanes:
    """The windows of a flat sequence of tokens, laid into parallel contiguous lanes.

    Lane i's targets are the tokens from `i * N // num_lanes` up to where the next lane starts, and its inputs the
    tokens one before each, `<eos>` before token 0. So every token is a target exactly once; lanes that end a token
    earlier than the longest are masked there.

    It is an iterable that Lightning takes as it is. It is no `DataLoader`: nothing can put a sampler into it, which
    would tear the lanes apart, and iterating draws nothing from the global random numbers.

    Args:
        ids: The N token ids; may be memory-mapped.
        eos: The id of `<eos>`.
        num_lanes: Parallel lanes.
        k1: Tokens per lane and window.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        bytes_per_token: Source bytes per token, for bits per byte.

    Raises:
        InputError: A number below 1, or fewer tokens than lanes.
    """

    def __init__(
        self,
        ids: np.ndarray,
        eos: int,
        num_lanes: int,
        k1: int,
        windows_per_batch: int = 1,
        bytes_per_token: float | None = None,
    ) -> None:
        for name, value in (("num_lanes", num_lanes), ("k1", k1), ("windows_per_batch", windows_per_batch)):
            if value < 1:
                raise InputError(f"{name}={value}: must be 1 or more")
        if len(ids) < num_lanes:
            raise InputError(
                f"num_lanes={num_lanes} over {len(ids)} tokens: every lane needs at least one token; use fewer lanes"
            )
        self.ids = ids
        self.eos = eos
        self.k1 = k1
        self.windows_per_batch = windows_per_batch
        self.bytes_per_token = bytes_per_token
        self.starts = [lane * len(ids) // num_lanes for lane in range(num_lanes)]
        self.lengths = np.diff([*self.starts, len(ids)])
        self.num_windows = -(-int(self.lengths.max()) // k1)
        self._first = 0

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-self.num_windows // self.windows_per_batch)

    def __iter__(self) -> Iterator[Batch]:
        # Taken here and not at the first batch: what is left of an epoch may be no batch at all.
        first, self._first = self._first, 0
        return map(self.batch, range(first, self.num_windows, self.windows_per_batch))

    def state_dict(self) -> dict[str, Any]:
        """Returns the start of the lanes; where a run stands, its module knows: loaders are read ahead."""
        return {"position": None, "skip": 0, "epoch": 0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration, and only that, begin later.

        Args:
            state: `position`, what a batch said of its place, or None for the start; `skip`, how many batches from
                that one on to leave out; `epoch`, the number of the epoch.
        """
        window = 0 if state["position"] is None else state["position"]["window"]
        self._first = window + state["skip"] * self.windows_per_batch

    def batch(self, window: int) -> Batch:
        """Returns the batch whose first window is number `window` of the lanes."""
        step = self.k1 * self.windows_per_batch
        first = window * self.k1
        last = min(first + step, int(self.lengths.max()))
        tokens = np.full((len(self.starts), last - first + 1), self.eos, np.int64)
        for row, start, length in zip(tokens, self.starts, self.lengths, strict=True):
            begin, end = start + first - 1, start + min(last, int(length))
            piece = self.ids[max(begin, 0) : end]
            offset = 1 if begin < 0 else 0
            row[offset : offset + len(piece)] = piece
        ids = torch.from_numpy(tokens)
        # A lane's own end; where every lane reaches the end of a window, that window has no mask.
        scored = torch.from_numpy(np.arange(first, last) < self.lengths[:, None])
        windows = []
        for begin in range(0, last - first, self.k1):
            end = min(begin + self.k1, last - first)
            mask = scored[:, begin:end]
            windows.append(
                Window(
                    inputs=ids[:, begin:end],
                    targets=ids[:, begin + 1 : end + 1],
                    reset=torch.ones(len(ids), dtype=torch.bool) if first + begin == 0 else None,
                    mask=None if bool(mask.all()) else mask,
                )
            )
        return Batch(tuple(windows), {"window": window})
