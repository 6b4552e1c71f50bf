"""Cores in plain values, also those that are made of cores."""

import copy
import pickle

import pytest
import torch
from tasks import Leaky, OwnGRU
from torch import nn

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


class Passing(GRU):
    """A user's core that passes options on."""

    def __init__(self, extra: int = 1, **options: int) -> None:
        super().__init__(**options)


class Unnamed(GRU):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)


def test_options_are_described_by_name_and_arguments_without_names_are_refused():
    core = Passing(2, hidden_size=5, num_layers=3)
    assert core.init_args == {"extra": 2, "hidden_size": 5, "num_layers": 3}
    assert repr(build(describe(core), Passing)) == repr(core)
    core = Unnamed(5, 2)
    copy.deepcopy(core)(torch.zeros(3, 4, 5), core.initial_state(3))
    with pytest.raises(InputError, match=r"core=Unnamed: its constructor took \(5, 2\) as \*sizes"):
        describe(core)
    assert describe(Unnamed())["init_args"] == {}


@pytest.mark.parametrize("of", [nn.ModuleList, tuple, iter])
def test_cores_of_any_collection_are_described(of):
    stack = Stack(of([SRU(6), GRU(6)]))
    assert repr(build(describe(stack))) == repr(stack)
    assert is_plain(describe(stack))


class OwnStack(Stack):
    """A user's stack, of which the cores are no argument."""

    def __init__(self, size: int = 4) -> None:
        super().__init__(LSTM(size) for _ in range(2))


def test_a_subclass_of_a_stack_keeps_its_own_arguments():
    assert OwnStack(5).init_args == {"size": 5}
    assert repr(build(describe(OwnStack(5)), OwnStack)) == repr(OwnStack(5))


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
