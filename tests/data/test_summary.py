"""What is said of a corpus before a run."""

import pytest

from lit_tbptt import Rank
from lit_tbptt.data.summary import reading_cost


@pytest.mark.parametrize(
    ("num_readers", "num_ranks", "times"), [(1, 1, None), (2, 2, None), (6, 2, None), (1, 3, "3.0"), (2, 3, "2.0")]
)
def test_the_cost_of_readers_that_processes_share_is_told(num_readers, num_ranks, times):
    cost = reading_cost(num_readers, [Rank(rank, num_ranks).share(6) for rank in range(num_ranks)])
    assert cost == [] if times is None else f"read the stream {times} times" in cost[0]
