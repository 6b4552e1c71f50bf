"""The lanes of several ranks in threads side by side, and put together again."""

import threading
from itertools import chain

from letters import as_lists
from processes import PATIENCE

from lit_tbptt import Rank


class RankAmongThreads(Rank):
    """A rank whose numbers are gathered by threads."""

    def __new__(cls, number, num_ranks, all_gather):
        self = super().__new__(cls, number, num_ranks)
        self.all_gather = all_gather
        return self


class SideBySide:
    """Lets the lanes of several ranks run side by side, as processes would."""

    def __init__(self, num_ranks):
        self.values, self.barrier = [None] * num_ranks, threading.Barrier(num_ranks, timeout=PATIENCE)

    def all_gather(self, rank):
        def all_gather(numbers):
            self.values[rank] = list(numbers)
            self.barrier.wait()
            found = list(self.values)
            self.barrier.wait()
            return found

        return all_gather

    def run(self, make, read=as_lists):
        """Returns what every rank read."""
        found = [None] * len(self.values)

        def one(rank):
            found[rank] = read(make(rank, self.all_gather(rank)))

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def joined(per_rank, lanes_per_rank):
    """Puts the lanes of all ranks below each other."""
    together = []
    for windows in zip(*(chain.from_iterable(batches) for batches in per_rank), strict=True):
        parts = []
        for part, missing in ((0, None), (1, None), (2, 0), (3, 1)):
            rows = []
            for window, lanes in zip(windows, lanes_per_rank, strict=True):
                given = window[part]
                shape = [missing] * len(window[0][0]) if part == 3 and window[0] else missing
                rows += [shape] * len(lanes) if given is None else given
            parts.append(rows)
        together.append(tuple(parts))
    return together
