"""The lanes of a process, and what processes agree on."""

import pytest
import torch
from side_by_side import RankAmongThreads, SideBySide

from lit_tbptt import Rank
from lit_tbptt.ranks import Agreement


@pytest.mark.parametrize(
    ("num_lanes", "num_ranks", "expected"),
    [
        (6, 1, [(0, 6)]),
        (6, 3, [(0, 2), (2, 4), (4, 6)]),
        (8, 3, [(0, 3), (3, 6), (6, 8)]),
        (7, 4, [(0, 2), (2, 4), (4, 6), (6, 7)]),
        (2, 3, [(0, 1), (1, 2), (2, 2)]),
    ],
)
def test_the_lanes_of_a_process(num_lanes, num_ranks, expected):
    shares = [Rank(rank, num_ranks).share(num_lanes) for rank in range(num_ranks)]
    assert shares == [range(*ends) for ends in expected]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([(True, False, False)], (True, False, False)),
        ([(True, False, False), (False, False, True)], (True, False, True)),
        ([(False, False), (False, False), (False, True)], (False, True)),
    ],
)
def test_a_flag_of_any_rank_is_one_of_all(flags, expected):
    num_ranks = len(flags)
    assert (
        SideBySide(num_ranks).run(
            lambda number, all_gather: RankAmongThreads(number, num_ranks, all_gather) if num_ranks > 1 else Rank(),
            lambda rank: rank.any_of(flags[rank.number]),
        )
        == [expected] * num_ranks
    )


def test_a_request_is_agreed_on_at_the_next_boundary_and_once():
    agreement = Agreement()
    agreement.request("save")
    assert agreement.exchange(torch.tensor(2.0), 7) == (2.0, 7)
    agreement.request("SIGTERM")
    agreement.sync()
    assert agreement.agreed == {"save", "SIGTERM"}
    agreement.sync()
    assert not agreement.agreed
