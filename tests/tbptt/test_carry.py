"""A carry is kept by lane, whoever had the lanes."""

import torch

from lit_tbptt import Carry, Window


def context_of(lanes, resets):
    """A context of 7 tokens, lane i holding 10 i, 10 i + 1, ..., cut where a lane is reset."""
    whole = Window(*[torch.stack([torch.arange(10 * lane, 10 * lane + 7) for lane in lanes])] * 2)
    pieces, done = [], 0
    for at, fresh in resets:
        piece, whole = whole.split(at - done)
        pieces.append(piece)
        whole, done = whole.with_reset(torch.tensor([lane in fresh for lane in lanes])), at
    return (*pieces, whole)


def test_a_carry_is_put_together_by_lane():
    def initial_state(num_lanes):
        return {"h": torch.zeros(num_lanes, 3), "c": torch.zeros(num_lanes, 2, 5)}

    def carry(lanes, resets):
        state = {
            "h": torch.stack([torch.full((3,), float(lane)) for lane in lanes]),
            "c": torch.stack([torch.full((2, 5), -float(lane)) for lane in lanes]),
        }
        return Carry(state, context_of(lanes, resets))

    # Two lanes, one, and three; in the first and the last process a lane is reset inside the context.
    shares = [range(2), range(2, 3), range(3, 6)]
    parts = [carry(shares[0], [(4, {1})]), carry(shares[1], []), carry(shares[2], [(1, {3, 5}), (4, {4})])]
    described = [part.describe() for part in parts]

    def picked(lanes):
        return Carry.from_descriptions(described, lambda num_lanes: lanes, initial_state, torch.device("cpu"))

    def plain(carry):
        context = [tuple(None if part is None else part.tolist() for part in window) for window in carry.context]
        return {name: leaf.tolist() for name, leaf in carry.state.items()}, context

    for share, part in zip(shares, parts, strict=True):
        assert plain(picked(share)) == plain(part)
    assert plain(picked(range(6))) == plain(carry(range(6), [(1, {3, 5}), (4, {1, 4})]))
    assert plain(picked(range(1, 4))) == plain(carry(range(1, 4), [(1, {3}), (4, {1})]))
    # A part of what one process had keeps the cuts of all of its lanes.
    assert plain(picked(range(4, 6))) == plain(carry(range(4, 6), [(1, {5}), (4, {4})]))
