"""Lanes over a stream of documents, which is read as needed and never stored.

reader 0   A A A A A A  C C C  D D ...        the documents of its shards, in order
lane 0     A A A A A A D D ...                num_lanes = 2, num_readers = 1:
lane 1     B B B C C C E ...                  a lane that has run out takes the next document
           |--k1--| |--k1--|
"""

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from lit_tbptt.data.lanes.tokens import NOTHING, TokenLanes
from lit_tbptt.data.lanes.window_lengths import WindowLengths
from lit_tbptt.data.read_ahead import ReadAhead
from lit_tbptt.data.text.stream import DocumentReader, DocumentStream, TextReader
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Batch, Window

logger = logging.getLogger(__name__)
# Batches that are read in advance: enough to cover the time of a read, in little memory.
_AHEAD = 8


class StreamedLanes(TokenLanes):
    """Lanes over a stream of documents.

    The lanes are divided into `num_readers` groups of adjacent lanes, and so are the shards of the stream. A group
    reads its shards in order; when one of its lanes runs out, it takes the next document. So the content of a lane
    depends on the stream, the seed, `num_lanes` and `num_readers` (and, with `document_reset`, on `k1`), but not on the
    number of processes. At the end, lanes that have run out are masked until all have.

    Args:
        stream: The documents.
        tokenizer: The tokenizer.
        num_lanes: Number of parallel lanes, over all processes.
        k1: Tokens per lane and window.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        num_readers: Number of groups of lanes, each with its own part of the shards. A process reads for the groups
            that its lanes belong to.
        document_reset: Whether each document begins at the start of a window with a reset of its lane; the window
            before it is padded and masked.
        shuffle_seed: Seed for shuffling the shards differently in every epoch. None: the original order.
        repeat: Whether to restart the stream at its end, so that no lane runs out and the epoch never ends.
        window_lengths: Draws the lengths of windows, at most k1, which is then the maximum. None: all have k1 tokens.
        local_lanes: The lanes of this process. None: all.
        all_gather: Gathers numbers from every process, such as `Rank.all_gather`, so that all make the same number of
            batches. Called once per batch.

    Attributes:
        num_documents: Documents started so far, in all processes.
        num_tokens: Tokens of these documents.
        num_bytes: Their bytes in UTF-8.
        num_unknown: Their `<unk>` tokens; once there is one, `bytes_per_token` is None.
        num_empty: Skipped documents without tokens.

    Raises:
        InputError: A number is below 1, `num_readers` does not divide `num_lanes`, or there are fewer shards than
            readers.
    """

    def __init__(
        self,
        stream: DocumentStream,
        tokenizer: Tokenizer,
        num_lanes: int,
        k1: int,
        windows_per_batch: int = 1,
        *,
        num_readers: int = 1,
        document_reset: bool = False,
        shuffle_seed: int | None = None,
        repeat: bool = False,
        window_lengths: WindowLengths | None = None,
        local_lanes: range | None = None,
        all_gather: Callable[[Sequence[int]], list[list[int]]] = lambda numbers: [list(numbers)],
    ) -> None:
        super().__init__(
            *(tokenizer.eos, num_lanes, k1, windows_per_batch, local_lanes),
            document_reset=document_reset,
            window_lengths=window_lengths,
        )
        if num_readers < 1 or num_lanes % num_readers:
            raise InputError(
                f"num_readers={num_readers} with num_lanes={num_lanes}: the readers divide the lanes evenly; choose a "
                f"num_readers that divides {num_lanes}"
            )
        if stream.num_shards < num_readers:
            raise InputError(
                f"num_readers={num_readers}: the {stream.split} split has {stream.num_shards} shards (files, or row "
                f"groups of parquet files), and every reader needs one; set num_readers to {stream.num_shards} or "
                "fewer, or write the corpus in more files"
            )
        self.stream = stream
        self.tokenizer = tokenizer
        self.num_readers = num_readers
        self.shuffle_seed = shuffle_seed
        self.repeat = repeat
        self.all_gather = all_gather
        self.num_documents = self.num_tokens = self.num_bytes = self.num_unknown = self.num_empty = 0
        self._said_empty = False

    def _fixed(self) -> dict[str, Any]:
        order = {name: getattr(self, name) for name in ("num_readers", "document_reset", "shuffle_seed", "repeat")}
        documents = f"{self.stream.num_shards} shards, the first document {self.stream.first_document_hash[:16]}"
        return self._sizes() | order | {"stream": documents}

    def _batches(self, position: Mapping[str, Any] | None, skip: int) -> Iterator[Batch]:
        return self._agreed(position, skip, self.epoch)

    def _agreed(self, position: Mapping[str, Any] | None, skip: int, epoch: int) -> Iterator[Batch]:
        """Yields batches until the lanes of every process have run out."""
        ahead = ReadAhead(lambda: islice(self._read(position, epoch), skip, None), _AHEAD)
        try:
            for read in ahead:
                reads = self.all_gather([read.num_time_steps, *read.counts])
                num_time_steps = max(steps for steps, *_ in reads)
                if num_time_steps == 0:
                    if read.position["window"] == 0:
                        raise InputError(f"the {self.stream.split} split has no text: all its documents are empty")
                    break
                totals = map(sum, zip(*reads, strict=True))
                _, self.num_documents, self.num_tokens, self.num_bytes, self.num_unknown, self.num_empty = totals
                known = self.num_tokens and not self.num_unknown
                self.bytes_per_token = self.num_bytes / self.num_tokens if known else None
                windows = read.windows
                if num_time_steps != read.num_time_steps:
                    windows = self._cut(read.tokens[:, : num_time_steps + 1], read.resets, read.lengths)
                yield self._batch_of(windows, read.position)
                if num_time_steps < sum(read.lengths):
                    break
        finally:
            ahead.close()
        if self.num_empty and not self._said_empty and 0 in self.local_lanes:
            logger.warning("%s empty documents were left out of the %s split", self.num_empty, self.stream.split)
            self._said_empty = True

    def _read(self, position: Mapping[str, Any] | None, epoch: int) -> Iterator["_Read"]:
        """Yields the contents of this process's lanes, endlessly, because other processes may have more."""
        per_group = self.num_lanes // self.num_readers
        groups = []
        for number in sorted({lane // per_group for lane in self.local_lanes}):
            saved = None if position is None else position["groups"][number]
            texts = TextReader(
                self.stream,
                number,
                self.num_readers,
                epoch=epoch,
                shuffle_seed=self.shuffle_seed,
                position=None if saved is None else saved["reader"]["texts"],
            )
            reader = DocumentReader(texts, self.tokenizer, self.repeat, None if saved is None else saved["reader"])
            lanes = range(number * per_group, (number + 1) * per_group)
            groups.append(_LaneGroup(lanes, self.local_lanes, reader, self.k1, self.document_reset, saved))
        window, first = self._place(position)
        while True:
            positions = {group.reader.texts.reader: group.position() for group in groups}
            here = self._position(window, first) | {"groups": positions}
            lengths = self.lengths(epoch, window, self.windows_per_batch)
            tokens = np.full((len(self.local_lanes), sum(lengths) + 1), NOTHING, np.int64)
            resets = np.zeros((self.windows_per_batch, len(tokens)), np.bool_)
            num_time_steps = max((group.fill(tokens, resets, first) for group in groups), default=0)
            if window == 0:
                resets[0] = True
            # If several processes read for a group, the one with its first lane counts it.
            own = [group.counts() for group in groups if group.lanes.start in self.local_lanes]
            counts = [sum(some) for some in zip([0] * 5, *own, strict=True)]
            windows = self._cut(tokens[:, : num_time_steps + 1], resets, lengths)
            yield _Read(tokens, resets, lengths, num_time_steps, windows, here, counts)
            window += self.windows_per_batch
            first += sum(lengths)


class _Read(NamedTuple):
    """The tokens of one batch, before the processes agree on its length.

    Attributes:
        tokens: `[lane, time + 1]` ids, starting at the token before the first target; NOTHING where there is none.
        resets: `[window, lane]`, true where a lane is reset.
        lengths: Time steps of its windows, if the data does not end before.
        num_time_steps: Number of targets of the longest lane.
        windows: The tokens cut into windows.
        position: The position before this batch.
        counts: Documents, tokens, bytes, unknown tokens and empty documents after it, as reported by this process.
    """

    tokens: np.ndarray
    resets: np.ndarray
    lengths: list[int]
    num_time_steps: int
    windows: tuple[Window, ...]
    position: Mapping[str, Any]
    counts: list[int]


class _LaneGroup:
    """The lanes that one reader feeds.

    Args:
        lanes: Their numbers.
        local_lanes: The lanes of this process, whose tokens are needed.
        reader: The reader of the documents.
        k1: Tokens per window.
        document_reset: Whether documents begin at the start of a window.
        position: The result of `position`. None: the start.
    """

    def __init__(
        self,
        lanes: range,
        local_lanes: range,
        reader: DocumentReader,
        k1: int,
        document_reset: bool,
        position: Mapping[str, Any] | None,
    ) -> None:
        self.lanes = lanes
        self.reader = reader
        self.k1 = k1
        self.document_reset = document_reset
        self._rows = {lane: row for row, lane in enumerate(local_lanes) if lane in lanes}
        # The content of a lane that has run out: the token before the next document.
        self._dry = np.array([reader.tokenizer.eos])
        if position is None:
            self._ends = dict.fromkeys(lanes, 0)
            self._rests = dict.fromkeys(self._rows, self._dry)
            self._counts = [0] * 4
        else:
            self._ends = dict(position["ends"])
            self._rests = {lane: np.asarray(position["rests"][lane]) for lane in self._rows}
            self._counts = list(position["counts"])

    def position(self) -> dict[str, Any]:
        """Returns the position before the next batch, as arrays and plain values.

        `ends` is the time at which each lane runs out; `rests` is the rest of its document, starting at the token
        before the next target.
        """
        return {
            "reader": self.reader.position(),
            "ends": dict(self._ends),
            "rests": dict(self._rests),
            "counts": list(self._counts),
        }

    def counts(self) -> list[int]:
        """Returns the documents, tokens, bytes and unknown tokens assigned so far, and the skipped documents."""
        return [*self._counts, self.reader.num_empty]

    def fill(self, tokens: np.ndarray, resets: np.ndarray, first: int) -> int:
        """Writes the next tokens of the lanes into `tokens`, and returns the number of time steps with tokens.

        Args:
            tokens: `[lane, time + 1]`, modified in place.
            resets: `[window, lane]`, modified in place.
            first: The time of the first target.
        """
        num_time_steps = tokens.shape[1] - 1
        for lane, row in self._rows.items():
            rest = self._rests[lane]
            tokens[row, : len(rest)] = rest[: num_time_steps + 1]
            self._rests[lane] = rest[num_time_steps:] if len(rest) > num_time_steps else self._dry
        waiting = [(end, lane) for lane, end in self._ends.items()]
        heapq.heapify(waiting)
        unit = self.k1 if self.document_reset else 1
        dealt = [self._counts]
        while waiting[0][0] < first + num_time_steps and (document := next(self.reader, None)) is not None:
            end, lane = waiting[0]
            length = len(document.ids)
            heapq.heapreplace(waiting, (end - -length // unit * unit, lane))
            dealt.append([1, length, document.num_bytes, document.num_unknown])
            if lane in self._rows:
                self._write(document.ids, lane, end - first, tokens, resets)
        self._counts = [sum(some) for some in zip(*dealt, strict=True)]
        self._ends = {lane: end for end, lane in waiting}
        return max(0, min(num_time_steps, max(self._ends.values()) - first))

    def _write(self, ids: np.ndarray, lane: int, place: int, tokens: np.ndarray, resets: np.ndarray) -> None:
        row, room = self._rows[lane], tokens.shape[1] - 1 - place
        if len(ids) < room:
            tokens[row, place + 1 : place + 1 + len(ids)] = ids
            self._rests[lane] = self._dry
        else:
            tokens[row, place + 1 :] = ids[:room]
            self._rests[lane] = ids[room - 1 :]
        if self.document_reset:
            resets[place // self.k1, row] = True
