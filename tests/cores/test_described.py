"""Cores in plain values, also those that are made of cores."""

import copy
import pickle

import pytest
import torch
from tasks import Leaky, OwnGRU

from lit_tbptt import GRU, LSTM, SRU, InputError, Stack
from lit_tbptt.cores.described import build, describe
from lit_tbptt.files.checkpoint import is_plain

NESTED = {
    "class_path": "lit_tbptt.Stack",
    "init_args": {
        "cores": [
            {"class_path": "lit_tbptt.SRU", "init_args": {"hidden_size": 6, "input_size": None}},
            {"class_path": "tasks.OwnGRU", "init_args": {"size": 6}},
        ],
        "skip": "none",
        "norm": None,
        "dropout": 0.25,
        "dropout_over_time": "free",
    },
}


def test_a_core_of_cores_is_described_in_plain_values_and_built_again():
    assert describe(Stack([SRU(6), OwnGRU(6)], dropout=0.25)) == NESTED
    assert is_plain(NESTED)
    core = Stack([Stack([LSTM(5, input_size=7)]), GRU(4, 2, input_size=5)], norm="rms")
    again = build(describe(core))
    assert repr(again) == repr(core)
    assert describe(again) == describe(core)
    again.load_state_dict(core.state_dict())


def test_a_class_within_is_given_and_never_imported():
    described = describe(Stack([SRU(6), OwnGRU(6)]))
    assert isinstance(build(described, OwnGRU).cores[1], OwnGRU)
    with pytest.raises(InputError, match=r"core is a tasks.OwnGRU, which is not imported .* --core tasks.OwnGRU\)$"):
        build(described)
    with pytest.raises(InputError, match=r"core is a .*Stack of .*SRU of .*OwnGRU; give that class"):
        build(described, GRU)
    with pytest.raises(InputError, match="besides OwnGRU; of several classes, pass the whole core instead"):
        build(describe(Stack([OwnGRU(7), Leaky()])), OwnGRU)


class Needy(GRU):
    """A user's core whose argument has no default."""

    def __init__(self, size: int) -> None:
        super().__init__(size)


def test_cores_whose_arguments_have_no_default_can_be_copied():
    core = Needy(5)
    for copied in (copy.deepcopy(core), pickle.loads(pickle.dumps(core))):
        assert copied.init_args == {"size": 5}
        assert all(map(torch.equal, copied.parameters(), core.parameters()))
    with pytest.raises(TypeError, match="size"):
        Needy()
