"""The cores that wrap torch.nn, and how arguments that are no cores are refused."""

import pytest
import torch
from tasks import Leaky
from torch import nn
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, RNN, InputError
from lit_tbptt.cores.checks import check_core


@pytest.mark.parametrize(
    ("make", "calls"), [(lambda: RNN(5), 1), (lambda: GRU(5), 1), (lambda: GRU(5, 2, 0.3), 2), (lambda: LSTM(5), 2)]
)
def test_where_the_outputs_are_the_states_one_call_gives_both(make, calls):
    core, called = make().eval(), []
    for module in core.rnn:
        module.register_forward_hook(lambda *args: called.append(1))
    core.forward_through(torch.randn(3, 11, 5), core.initial_state(3), 4)
    assert len(called) == calls


def test_a_core_that_changes_its_state_in_place_is_noticed_at_the_far_edge():
    class InPlace(Leaky):
        def forward(self, inputs, state):
            state["seen"] += inputs.shape[1]
            return super().forward(inputs, state)

    core = InPlace()
    with pytest.raises(InputError, match=r"'seen'.* was changed in place"):
        core.forward_through(torch.randn(3, 11, 7), core.initial_state(3), 4)


@pytest.mark.parametrize("core_class", [RNN, LSTM, GRU])
def test_a_learned_initial_state_receives_gradient(core_class):
    core = core_class(5, 2, learned_initial_state=True)
    outputs, _ = core(torch.randn(3, 4, 5), core.initial_state(3))
    outputs.sum().backward()
    assert len(core.initial) == len(core.state_names)
    assert all(initial.grad.abs().sum() > 0 for initial in core.initial.values())
    assert len(core_class(5).initial) == 0


def test_it_equals_torchs_own_lstm():
    core = LSTM(5, 2, input_size=7)
    inputs = torch.randn(3, 11, 7)
    outputs, state = core(inputs, core.initial_state(3))
    expected, (hidden, cell) = core.rnn[0](inputs)
    assert_close(outputs, expected)
    assert_close(state, {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)})


def test_with_dropout_between_layers_it_equals_torchs_own_lstm_too():
    """On the CPU, where torch draws these masks from its global generator."""
    core, whole = LSTM(5, 3, dropout=0.4, input_size=7), torch.nn.LSTM(7, 5, 3, dropout=0.4, batch_first=True)
    for theirs, ours in zip(whole.parameters(), core.rnn.parameters(), strict=True):
        theirs.data = ours.data
    inputs = torch.randn(3, 11, 7)
    torch.manual_seed(2)
    outputs, state = core(inputs, core.initial_state(3))
    torch.manual_seed(2)
    expected, (hidden, cell) = whole(inputs)
    assert_close(outputs, expected)
    assert_close(state, {"hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)})
    assert not torch.allclose(core.eval()(inputs, core.initial_state(3))[0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"input_size": -1}, "input_size=-1"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LSTM(**arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (nn.LSTM(3, 5, 2, batch_first=True), r"lit_tbptt.LSTM\(hidden_size=5, num_layers=2, input_size=3\)"),
        (GRU, r"core=GRU: this is the class"),
        ("LSTM", r"core='LSTM': must be a RecurrentCore"),
    ],
)
def test_what_is_no_core_is_refused_in_a_sentence(given, message):
    with pytest.raises(InputError, match=message):
        check_core(given)
