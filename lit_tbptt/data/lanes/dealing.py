"""Cuts sequences into pieces and deals the pieces to lanes: a lane that has run dry takes the next one.

sequence   |------------- max_length ------------|------------- max_length ----|
piece 0    |~~~~~~~|=============================|                              ~ run, not scored: burn_in
piece 1                                  |~~~~~~~|=============================|    = scored

lane 0     | piece 0       | piece 3   ....      a piece begins at a window's start, with a reset;
lane 1     | piece 1   ....| piece 2             .... padding, not scored
           |--k1--| |--k1--|
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from lit_tbptt.errors import InputError


class Pieces(NamedTuple):
    """Stretches of sequences, in order.

    Attributes:
        sequences: `[piece]` numbers of the sequences.
        starts: `[piece]`, the first time step that is run.
        ends: `[piece]`, the time step after the last.
        burn_in: Time steps of each that are run and not scored.
    """

    sequences: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    burn_in: int

    @classmethod
    def of_sequences(cls, lengths: np.ndarray, max_length: int | None, burn_in: int) -> Self:
        """Cuts sequences into pieces; those without a scored time step are left out.

        Args:
            lengths: `[sequence]` time steps.
            max_length: Time steps of a piece, the `burn_in` ones before it aside. None: a sequence is one piece.
            burn_in: Time steps that are run and not scored; a later piece of a sequence is run from that many earlier.
        """
        size = int(max_length or lengths.max(initial=1))
        num_pieces = -(-lengths // size)
        sequences = np.repeat(np.arange(len(lengths)), num_pieces)
        numbers = np.arange(len(sequences)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
        starts = np.maximum(0, numbers * size - burn_in)
        ends = np.minimum((numbers + 1) * size, lengths[sequences])
        kept = ends - starts > burn_in
        return cls(sequences[kept], starts[kept], ends[kept], burn_in)

    @property
    def num_time_steps(self) -> np.ndarray:
        """`[piece]` time steps that are run."""
        return self.ends - self.starts

    @property
    def num_targets(self) -> int:
        """Time steps that are scored."""
        return int((self.num_time_steps - self.burn_in).sum())


class Dealt(NamedTuple):
    """The content of the lanes in a window.

    Attributes:
        pieces: `[lane]` numbers of the pieces; for a dry lane, of its last piece.
        done: `[lane]` time steps of the piece before this window.
        num_time_steps: `[lane]` time steps of it in this window; 0 where the lane is dry.
    """

    pieces: np.ndarray
    done: np.ndarray
    num_time_steps: np.ndarray


class Dealer:
    """Deals pieces to lanes, window by window.

    The content of a lane depends on the pieces, their order and the number of lanes, never on the number of processes.

    Args:
        pieces: The pieces.
        num_lanes: The number of lanes.
        k1: Time steps of a window.
        shuffle_seed: Determines the order of the pieces. None: the given order.
        repeat: Whether to deal the pieces again at the end, so that no lane runs dry.
    """

    def __init__(
        self, pieces: Pieces, num_lanes: int, k1: int, shuffle_seed: tuple[int, int] | None = None, repeat: bool = False
    ) -> None:
        self.lengths = pieces.num_time_steps
        self.k1 = k1
        self.shuffle_seed = shuffle_seed
        self.repeat = repeat
        self.window = self._pass = self._next = 0
        self._pieces = np.full(num_lanes, -1)
        self._done = np.zeros(num_lanes, np.int64)
        self._order = self._order_of_pass()

    def deal(self) -> Dealt | None:
        """Returns the content of the lanes in the next window. None: all are dry."""
        left = np.where(self._pieces < 0, 0, self.lengths[self._pieces] - self._done)
        for lane in np.flatnonzero(left == 0):
            if self._next == len(self._order):
                if not self.repeat:
                    break
                self._pass, self._next = self._pass + 1, 0
                self._order = self._order_of_pass()
            piece = self._order[self._next]
            self._next += 1
            self._pieces[lane], self._done[lane], left[lane] = piece, 0, self.lengths[piece]
        if not left.any():
            return None
        dealt = Dealt(self._pieces.copy(), self._done.copy(), np.minimum(left, self.k1))
        self._done += dealt.num_time_steps
        self.window += 1
        return dealt

    def _order_of_pass(self) -> np.ndarray:
        if self.shuffle_seed is None:
            return np.arange(len(self.lengths))
        return np.random.default_rng([*self.shuffle_seed, self._pass]).permutation(len(self.lengths))

    def state_dict(self) -> dict[str, Any]:
        """Returns where the next window begins: by lane the piece, and its time steps before that."""
        lanes = [list(lane) for lane in zip(self._pieces.tolist(), self._done.tolist(), strict=True)]
        return {"window": self.window, "pass": self._pass, "next": self._next, "lanes": lanes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next window begin where a dealer of the same pieces and lanes was."""
        if len(state["lanes"]) != len(self._pieces):
            raise InputError(f"num_lanes={len(self._pieces)}: the position is one of {len(state['lanes'])} lanes")
        self.window, self._pass, self._next = state["window"], state["pass"], state["next"]
        self._pieces, self._done = np.array(state["lanes"], np.int64).T.copy()
        self._order = self._order_of_pass()
