"""Sequences that can be indexed as lanes: episodes, recordings, measurements."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import torch

import lit_tbptt.data.process_end  # noqa: F401 - makes the process wait for reads at exit
from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.data.lanes.dealing import Dealer, Dealt, Pieces
from lit_tbptt.data.read_ahead import ReadAhead
from lit_tbptt.data.sequences.rows import Held, Rows
from lit_tbptt.data.sequences.source import SequenceSource
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank
from lit_tbptt.tbptt.window import Batch, Window

_AHEAD = 2
"""Batches that are read beside training."""


class SequenceLanes(Lanes):
    """Lanes over a dataset of sequences, each of which begins at the start of a window with a reset.

    A lane that has run out of data takes the next sequence, or the next piece of one (`dealing.py`). The content of a
    lane depends on the lengths, the seed and the sizes, never on the number of processes. If a lane does not fill a
    window, its last time step is repeated and masked. A separate thread reads the data.

    Args:
        dataset: The sequences; see `SequenceSource`, also for `reading`. Or such a source.
        num_lanes: Parallel lanes, those of all processes together.
        k1: Time steps per lane and window. A window is shorter if no lane fills it, unless there are random lanes.
        windows_per_batch: Windows per batch; the last batch may have fewer.
        max_length: Longer sequences are cut into pieces of this number of time steps. None: they are not cut.
        burn_in: Number of time steps after a reset that are run but not scored. Later pieces of a sequence are run from
            this many steps earlier, so only the first steps of the sequence are not scored.
        shuffle: Whether every epoch has a different order of pieces.
        repeat: Whether to start again at the end, so that no lane runs dry and the epoch never ends.
        random_lanes: Number of lanes, the last ones, that do not take sequences in turn. Each of their windows starts
            at a random place of the dataset, with a reset.
        seed: Determines the order, the places of random lanes, and the generators of `transform`.
        normalization: Called with every window, such as `Normalization`.
        rank: The rank of this process, which gets its share of the lanes.
        **reading: What is read of the dataset: `inputs`, `targets`, `static`, `mask`, `shift`, `lengths`, `dtypes` and
            `transform` of `SequenceSource`.

    Attributes:
        pieces: The pieces that are dealt to lanes.
        source: Reads the dataset.

    Raises:
        InputError: A number is out of its range, there are fewer pieces than lanes, or an item is wrong.
    """

    def __init__(
        self,
        dataset: Any,
        num_lanes: int,
        k1: int,
        windows_per_batch: int = 1,
        *,
        max_length: int | None = None,
        burn_in: int = 0,
        shuffle: bool = False,
        repeat: bool = False,
        random_lanes: int = 0,
        seed: int = 1,
        normalization: Callable[[Window], Window] | None = None,
        rank: Rank | None = None,
        **reading: Any,
    ) -> None:
        rank = rank or Rank()
        super().__init__(num_lanes, k1, windows_per_batch, rank.share(num_lanes))
        for name, value in (("shuffle", shuffle), ("repeat", repeat)):
            if not isinstance(value, bool):
                raise InputError(f"{name}={value!r}: must be True or False")
        if max_length is not None and max_length < 1:
            raise InputError(f"max_length={max_length}: must be 1 or more; leave it out to cut no sequence")
        if burn_in < 0:
            raise InputError(f"burn_in={burn_in}: must be 0 or more")
        if not 0 <= random_lanes < num_lanes:
            raise InputError(f"random_lanes={random_lanes} of num_lanes={num_lanes}: must leave at least one lane")
        if random_lanes and burn_in >= k1:
            raise InputError(
                f"burn_in={burn_in} with random_lanes={random_lanes}: each of their windows has k1={k1} time steps and "
                "begins with a reset, so none would be scored; choose a smaller burn_in"
            )
        ready = isinstance(dataset, SequenceSource)
        if ready and reading:
            raise InputError(f"{', '.join(reading)}: the SequenceSource was made with its own; give them to it instead")
        self.source: SequenceSource = dataset if ready else SequenceSource(dataset, rank=rank, **reading)
        self.max_length = max_length
        self.burn_in = burn_in
        self.shuffle = shuffle
        self.repeat = repeat
        self.random_lanes = random_lanes
        self.seed = seed
        self.normalization = normalization
        self.pieces = Pieces.of_sequences(self.source.lengths, max_length, burn_in)
        if not len(self.pieces.sequences):
            raise InputError(
                f"burn_in={burn_in}: the longest sequence has {self.source.lengths.max()} time steps, so none is scored"
            )
        if len(self.pieces.sequences) < num_lanes - random_lanes:
            raise InputError(
                f"num_lanes={num_lanes} over {len(self.pieces.sequences)} sequences, or pieces of them: every lane "
                "needs one; use fewer lanes, or cut the sequences into more pieces with a smaller max_length"
            )
        self._sizes_of: tuple[int, tuple[int, int]] | None = None

    def __len__(self) -> int:
        """Returns the number of batches, if all epochs have the same.

        Raises:
            TypeError: They have not: sequences in a changing order fill the lanes unevenly; or the epoch never ends.
        """
        if self.num_windows is None:
            raise TypeError("the number of batches differs from epoch to epoch, or there is no end")
        return -(-self.num_windows // self.windows_per_batch)

    @property
    def num_windows(self) -> int | None:
        """Windows of an epoch. None: epochs differ, or do not end."""
        return None if self.shuffle or self.repeat else self._epoch_sizes()[0]

    @property
    def padding(self) -> float:
        """The share of an epoch's time steps that are padding; with `repeat`, of one pass."""
        _, num_time_steps = self._epoch_sizes()
        return 1 - int(self.pieces.num_time_steps.sum()) / num_time_steps

    def _epoch_sizes(self) -> tuple[int, int]:
        """Returns the windows of an epoch, and the time steps of all lanes in them, padding included."""
        if self._sizes_of is None or self._sizes_of[0] != self.epoch:
            dealer = self._dealer(self.epoch, repeat=False)
            longest = [self._window_length(dealt) for dealt in iter(dealer.deal, None)]
            self._sizes_of = self.epoch, (len(longest), sum(longest) * (self.num_lanes - self.random_lanes))
        return self._sizes_of[1]

    def _window_length(self, dealt: Dealt) -> int:
        # Random lanes have all k1 time steps in every window.
        return self.k1 if self.random_lanes else int(dealt.num_time_steps.max())

    def _dealer(self, epoch: int, repeat: bool) -> Dealer:
        shuffle_seed = (self.seed, epoch) if self.shuffle else None
        return Dealer(self.pieces, self.num_lanes - self.random_lanes, self.k1, shuffle_seed, repeat)

    def _fixed(self) -> dict[str, Any]:
        names = ("max_length", "burn_in", "shuffle", "repeat", "random_lanes", "seed")
        settings = {name: getattr(self, name) for name in names}
        transform = self.source.transform
        name = None if transform is None else getattr(transform, "__qualname__", type(transform).__qualname__)
        return self._sizes() | settings | {"shift": self.source.shift, "transform": name, "dataset": self._content}

    @cached_property
    def _content(self) -> str:
        lengths = self.source.lengths
        numbers = f"{len(lengths)} sequences of {lengths.sum()} time steps with lengths {crc32(lengths.tobytes()):08x}"
        return f"{numbers} and {self.source.contents}"

    # Batches

    def _batches(self, position: Mapping[str, Any] | None, skip: int) -> Iterator[Batch]:
        epoch = self.epoch
        _ = self._content  # now, because a dataset may not be read by two threads
        ahead = ReadAhead(lambda: self._read(position, skip, epoch), _AHEAD)
        try:
            yield from ahead
        finally:
            ahead.close(wait=60.0)  # whoever reads the dataset next

    def _read(self, position: Mapping[str, Any] | None, skip: int, epoch: int) -> Iterator[Batch]:
        dealer = self._dealer(epoch, self.repeat)
        if position is not None:
            dealer.load_state_dict(position)
        for _ in range(skip * self.windows_per_batch):
            dealer.deal()
        rows = Rows(self.source, self.seed, epoch, self.normalization)
        while True:
            here, windows, held, scored = dealer.state_dict(), [], [], []
            for _ in range(self.windows_per_batch):
                number, dealt = dealer.window, dealer.deal()
                if dealt is None:
                    break
                lanes = self._held(dealt, number, epoch)
                windows.append(rows.window([lanes[lane] for lane in self.local_lanes], self.burn_in))
                held.append(rows.held)
                scored.append(
                    bool(windows[-1].mask_or_ones().any())
                    if self.source.has_mask
                    else any(0 < each.num_time_steps > self.burn_in - each.done for each in lanes)
                )
            if not windows:
                return
            everywhere = None if all(scored) else tuple(scored)
            yield Batch(tuple(windows), here, torch.stack(held), everywhere, self.source.has_mask)

    def _held(self, dealt: Dealt, window: int, epoch: int) -> list[Held]:
        """Returns what each lane contains in a window, for the lanes of all processes."""
        longest = self._window_length(dealt)
        sequences, starts = self.pieces.sequences[dealt.pieces], self.pieces.starts[dealt.pieces] + dealt.done
        columns = [each.tolist() for each in (sequences, starts, dealt.num_time_steps, dealt.done)]
        lanes = [Held(longest, *row) for row in zip(*columns, strict=True)]
        for lane in range(len(lanes), self.num_lanes):
            place = np.random.default_rng([self.seed, epoch, window, lane]).integers(self._places[-1])
            sequence = int(np.searchsorted(self._places, place, "right"))
            start = int(place - (self._places[sequence - 1] if sequence else 0))
            size = min(longest, int(self.source.lengths[sequence]) - start)
            lanes.append(Held(longest, sequence, start, size, 0))
        return lanes

    @cached_property
    def _places(self) -> np.ndarray:
        """`[sequence]`, the number of places where a random window can start, up to the end of each sequence."""
        return np.cumsum(np.maximum(1, self.source.lengths - self.k1 + 1))
