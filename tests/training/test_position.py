"""Where a run stands."""

import numpy as np

from lit_tbptt.training.position import Position


def test_a_position_is_united_key_by_key():
    parts = [
        {"window": 3, "groups": {0: {"reader": [7], "rests": {0: np.arange(2), 1: np.arange(3)}}}},
        {"window": 3, "groups": {0: {"reader": [7], "rests": {2: np.arange(4)}}, 1: {"reader": [9], "rests": {}}}},
    ]
    found = Position(step=5).united(parts).data
    assert found["window"] == 3
    assert {lane: rest.tolist() for lane, rest in found["groups"][0]["rests"].items()} == {
        0: [0, 1],
        1: [0, 1, 2],
        2: [0, 1, 2, 3],
    }
    assert found["groups"][1] == {"reader": [9], "rests": {}}
    assert Position().united([None, None]).data is None
