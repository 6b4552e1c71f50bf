"""Lanes over a stored corpus: each lane is one contiguous part of it.

tokens   t0 t1 t2 t3 t4 t5 t6 t7 t8 t9                 one flat file
lane 0   t0 t1 t2 t3 t4 | t5 ...                       num_lanes = 2
lane 1   t5 t6 t7 t8 t9 |
         |--k1--| |--k1--|                             a window: the next k1 tokens of every lane
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from lit_tbptt.data.lanes.tokens import NOTHING, TokenLanes
from lit_tbptt.data.lanes.window_lengths import WindowLengths
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Batch


class _Layout(NamedTuple):
    """The order of the tokens in an epoch: pieces of the file, one after another.

    Attributes:
        sources: The start of each piece in the file.
        lengths: The number of tokens of each piece.
        places: The start of each piece in the epoch, and the end of the last one.
        starts: The start of each lane in the epoch, and the end of the last one.
    """

    sources: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    starts: np.ndarray

    @property
    def num_time_steps(self) -> int:
        """Tokens of the longest lane, including padding."""
        return int(np.diff(self.starts).max())


class StridedLanes(TokenLanes):
    """Lanes over a flat sequence of N tokens.

    The targets of lane i are the tokens from `i * N // num_lanes` up to the start of the next lane. Its inputs are the
    tokens before each of them, with `<eos>` before token 0. So every token is a target exactly once; lanes that end one
    token before the longest are masked there.

    Args:
        ids: The N token ids; may be memory-mapped.
        eos: The id of `<eos>`, which ends every document.
        num_lanes: Number of parallel lanes, over all processes.
        k1: Tokens per lane and window.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        bytes_per_token: Source bytes per token, for bits per byte. None: without bits per byte.
        document_ends: The end of each document, including its `<eos>`; needed for the next two options.
        document_reset: Whether each document begins at the start of a window with a reset of its lane; the window
            before it is padded and masked. Lane i then begins with the first document at or after its share.
        shuffle_seed: Seed for shuffling the documents differently in every epoch. None: the original order.
        rotation_seed: Seed for the token at which every epoch except the first begins; it wraps around. None: always
            the first token.
        window_lengths: Draws the lengths of windows, at most k1, which is then the maximum. None: all have k1 tokens.
        local_lanes: The lanes of this process. None: all.

    Raises:
        InputError: A number is below 1, or there are fewer tokens than lanes.
    """

    def __init__(
        self,
        ids: np.ndarray,
        eos: int,
        num_lanes: int,
        k1: int,
        windows_per_batch: int = 1,
        bytes_per_token: float | None = None,
        *,
        document_ends: np.ndarray | None = None,
        document_reset: bool = False,
        shuffle_seed: int | None = None,
        rotation_seed: int | None = None,
        window_lengths: WindowLengths | None = None,
        local_lanes: range | None = None,
    ) -> None:
        super().__init__(
            *(eos, num_lanes, k1, windows_per_batch, local_lanes),
            document_reset=document_reset,
            window_lengths=window_lengths,
        )
        if len(ids) < num_lanes:
            raise InputError(
                f"num_lanes={num_lanes} over {len(ids)} tokens: every lane needs at least one token; use fewer lanes"
            )
        if document_ends is None:
            if document_reset or shuffle_seed is not None:
                raise InputError("document_ends=None: document_reset and shuffle_seed need to know the documents")
            document_ends = np.array([len(ids)])
        self.ids = np.asarray(ids)
        self.bytes_per_token = bytes_per_token
        self.document_ends = document_ends
        self.shuffle_seed = shuffle_seed
        self.rotation_seed = rotation_seed
        self._layout_of: tuple[int, _Layout] | None = None

    def __len__(self) -> int:
        """Returns the number of batches, if it is the same in all epochs.

        Raises:
            TypeError: It is not: with document resets and a changing order, padding differs between epochs; with
                `window_lengths`, lengths do.
        """
        if self.num_windows is None:
            raise TypeError("the number of batches differs from epoch to epoch")
        return -(-self.num_windows // self.windows_per_batch)

    @property
    def num_windows(self) -> int | None:
        """Windows per epoch. None: it differs, because of `window_lengths` or documents that are padded differently."""
        if self.window_lengths is not None:
            return None
        if self.document_reset and (self.shuffle_seed is not None or self.rotation_seed is not None):
            return None
        return -(-self._layout().num_time_steps // self.k1)

    def count_windows(self) -> int:
        """Returns the number of windows of the epoch that the next iteration is of."""
        num_time_steps, count, at_once = self._layout().num_time_steps, 0, 1024
        while num_time_steps > 0:
            ends = np.cumsum(self.lengths(self.epoch, count, at_once))
            count += min(at_once, int(np.searchsorted(ends, num_time_steps)) + 1)
            num_time_steps -= int(ends[-1])
        return count

    def _batches(self, position: Mapping[str, Any] | None, skip: int) -> Iterator[Batch]:
        layout, epoch = self._layout(), self.epoch
        window, first = self._place(position)
        first += sum(self.lengths(epoch, window, skip * self.windows_per_batch))
        return self._batches_from(layout, epoch, window + skip * self.windows_per_batch, first)

    def _batches_from(self, layout: _Layout, epoch: int, window: int, first: int) -> Iterator[Batch]:
        while first < layout.num_time_steps:
            lengths = self.lengths(epoch, window, self.windows_per_batch)
            yield self._batch(layout, window, first, lengths)
            window += self.windows_per_batch
            first += sum(lengths)

    def _batch(self, layout: _Layout, window: int, first: int, lengths: list[int]) -> Batch:
        last = min(first + sum(lengths), layout.num_time_steps)
        tokens = np.full((len(self.local_lanes), last - first + 1), NOTHING, np.int64)
        resets = np.zeros((len(lengths), len(tokens)), np.bool_)
        if window == 0:
            resets[0] = True
        for row, lane in enumerate(self.local_lanes):
            start, end = layout.starts[lane], min(layout.starts[lane] + last, layout.starts[lane + 1])
            self._fill(layout, tokens[row], resets[:, row], start + first - 1, end)
        return self._batch_of(self._cut(tokens, resets, lengths), self._position(window, first))

    def _fill(self, layout: _Layout, row: np.ndarray, resets: np.ndarray, begin: int, end: int) -> None:
        """Copies the tokens of the epoch from `begin` up to `end` into a row."""
        if begin < 0:  # the input before the epoch's first token is the token before it in the file
            source = int(layout.sources[0])
            row[0] = self.ids[source - 1] if source else self.eos
        piece = max(0, int(np.searchsorted(layout.places, begin, "right")) - 1)
        while piece < len(layout.sources) and layout.places[piece] < end:
            place, source = int(layout.places[piece]), int(layout.sources[piece])
            first, last = max(begin, place, 0), min(end, place + int(layout.lengths[piece]))
            if first < last:
                row[first - begin : last - begin] = self.ids[source + first - place : source + last - place]
            if self.document_reset and place > begin:
                resets[(place - begin - 1) // self.k1] = True
            piece += 1

    def _fixed(self) -> dict[str, Any]:
        order = {name: getattr(self, name) for name in ("document_reset", "shuffle_seed", "rotation_seed")}
        ids, ends = self._checksums
        return self._sizes() | order | {"ids": ids, "document_ends": ends}

    @cached_property
    def _checksums(self) -> tuple[str, str]:
        return _checksum(self.ids, "ids"), _checksum(self.document_ends, "ends")

    def _layout(self) -> _Layout:
        if self._layout_of is None or self._layout_of[0] != self.epoch:
            self._layout_of = (self.epoch, self._lay_out())
        return self._layout_of[1]

    def _lay_out(self) -> _Layout:
        by_document = self.document_reset or self.shuffle_seed is not None
        ends = np.asarray(self.document_ends if by_document else [len(self.ids)], np.int64)
        lengths = np.diff(ends, prepend=0)
        sources = ends - lengths
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(len(ends))
            sources, lengths = sources[order], lengths[order]
        if self.rotation_seed is not None and self.epoch:
            offset = int(np.random.default_rng([self.rotation_seed, self.epoch]).integers(len(self.ids)))
            sources, lengths = _rotate(sources, lengths, offset, whole=self.document_reset)
        unit = self.k1 if self.document_reset else 1
        places = np.concatenate([[0], np.cumsum(-(-lengths // unit) * unit)])
        starts = np.arange(self.num_lanes + 1) * int(places[-1]) // self.num_lanes
        if self.document_reset:
            starts = places[np.searchsorted(places, starts)]
        return _Layout(sources, lengths, places, starts)


def _checksum(numbers: np.ndarray, noun: str) -> str:
    """Describes an array by its length and a checksum over at most a million elements, in evenly spaced blocks."""
    block = 1024
    starts = range(0, len(numbers), max(block, -(-len(numbers) // 1024)))
    total = 0
    for start in starts:
        total = crc32(np.asarray(numbers[start : start + block], np.int64).tobytes(), total)
    return f"{len(numbers)} {noun} with checksum {total:08x}"


def _rotate(sources: np.ndarray, lengths: np.ndarray, offset: int, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rotates the pieces to begin at token `offset`, or at the first whole piece after it."""
    piece = int(np.searchsorted(np.cumsum(lengths), offset, "right"))
    before = offset - int(lengths[:piece].sum())
    turn = piece + int(whole and before > 0)
    sources, lengths = np.roll(sources, -turn), np.roll(lengths, -turn)
    if whole or not before:
        return sources, lengths
    sources, lengths = np.append(sources, sources[0]), np.append(lengths, before)
    sources[0] += before
    lengths[0] -= before
    return sources, lengths
