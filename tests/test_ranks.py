"""The lanes of a process, and what processes agree on."""

import pytest
import torch

from lit_tbptt import Ranks
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
    shares = [Ranks(rank, num_ranks).share(num_lanes) for rank in range(num_ranks)]
    assert shares == [range(*ends) for ends in expected]


def test_a_wish_is_granted_at_the_next_boundary_and_once():
    agreement = Agreement(Ranks())
    agreement.wish("save")
    assert agreement.exchange(torch.tensor(2.0), 7) == (2.0, 7)
    agreement.wish("SIGTERM")
    agreement.settle()
    assert agreement.granted == {"save", "SIGTERM"}
    agreement.settle()
    assert not agreement.granted
