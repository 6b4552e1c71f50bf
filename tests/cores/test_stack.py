"""Stacks of cores: skip connections, normalization, dropout, noise, and what is refused."""

import inspect

import pytest
import torch
from tasks import Leaky, Shaken
from torch import nn
from torch.nn.functional import layer_norm, rms_norm
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, RNN, SRU, InputError, RecurrentLM, Stack, Truncation, Window
from lit_tbptt.cores.joining import join_features

LANES, STEPS = 3, 11


def inputs_of(size, steps=STEPS):
    return torch.randn(LANES, steps, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def in_turn(cores, state, given, place):
    """The outputs of one of the cores."""
    return cores[place](given, state[str(place)])[0]


def test_two_lstms_are_torchs_lstm_of_two_layers():
    stack, whole = Stack([LSTM(5, input_size=7), LSTM(5)]).double(), nn.LSTM(7, 5, 2, batch_first=True).double()
    for theirs, ours in zip(whole.parameters(), stack.parameters(), strict=True):
        theirs.data = ours.data
    outputs, state = stack(inputs_of(7), stack.initial_state(LANES))
    expected, (hidden, cell) = whole(inputs_of(7))
    assert_close(outputs, expected)
    assert_close([state[name]["hidden"][:, 0] for name in "01"], list(hidden))
    assert_close([state[name]["cell"][:, 0] for name in "01"], list(cell))


def test_free_dropout_is_that_of_torchs_lstm():
    """On the CPU, where torch draws these masks from its global generator."""
    stack, whole = Stack([LSTM(5), LSTM(5), LSTM(5)], dropout=0.4), nn.LSTM(5, 5, 3, dropout=0.4, batch_first=True)
    for theirs, ours in zip(whole.parameters(), stack.parameters(), strict=True):
        theirs.data = ours.data
    inputs = inputs_of(5).float()
    torch.manual_seed(4)
    outputs, _ = stack(inputs, stack.initial_state(LANES))
    torch.manual_seed(4)
    assert_close(outputs, whole(inputs)[0])
    assert not torch.allclose(stack.eval()(inputs, stack.initial_state(LANES))[0], outputs)


def test_with_dense_skips_every_core_sees_the_inputs_and_the_output_is_all_of_them():
    cores = [GRU(5, input_size=7), SRU(6, input_size=12), LSTM(4, input_size=13)]
    stack = Stack(cores, "dense").double()
    state, x = stack.initial_state(LANES), inputs_of(7)
    first = in_turn(cores, state, x, 0)
    second = in_turn(cores, state, torch.cat([first, x], -1), 1)
    third = in_turn(cores, state, torch.cat([second, x], -1), 2)
    assert (stack.input_size, stack.output_size) == (7, 15)
    assert_close(stack(x, state)[0], torch.cat([first, second, third], -1))


@pytest.mark.parametrize(
    ("norm", "normalize"), [("layer", layer_norm), ("rms", lambda *given: rms_norm(*given, eps=1e-5))]
)
def test_with_residual_skips_only_the_cores_and_the_head_see_normalized_features(norm, normalize):
    cores = [GRU(7), Stack([LSTM(5, input_size=7), RNN(7, input_size=5)])]
    stack = Stack(cores, "residual", norm).double()
    for number, module in enumerate([*stack.norms, stack.last_norm]):
        nn.init.constant_(module.weight, 1 + 0.3 * number)
    state, x = stack.initial_state(LANES), inputs_of(7)
    first = x + in_turn(cores, state, normalize(x, (7,)), 0)
    second = first + in_turn(cores, state, 1.3 * normalize(first, (7,)), 1)
    assert_close(stack(x, state)[0], 1.6 * normalize(second, (7,)))
    plain = Stack(cores, "residual")
    first = x + in_turn(cores, state, x, 0)
    assert_close(plain(x, state)[0], first + in_turn(cores, state, first, 1))


def test_without_skips_the_norm_is_of_what_each_core_takes():
    cores = [GRU(5, input_size=7), SRU(6, input_size=5)]
    stack = Stack(cores, norm="layer").double()
    state, x = stack.initial_state(LANES), inputs_of(7)
    first = in_turn(cores, state, layer_norm(x, (7,)), 0)
    assert_close(stack(x, state)[0], in_turn(cores, state, layer_norm(first, (5,)), 1))


def test_shared_masks_are_drawn_once_a_window_and_for_each_lane():
    cores = [GRU(5, input_size=7), GRU(4, input_size=12), GRU(3, input_size=11)]
    stack = Stack(cores, "dense", dropout=0.4, dropout_over_time="shared").double()
    state, x = stack.initial_state(LANES), inputs_of(7)
    noise = stack.noise = stack.begin_window(LANES)
    masks = noise["masks"]
    assert [mask.shape for mask in masks] == [(LANES, 1, 5), (LANES, 1, 4)]
    assert {*masks[0].unique().tolist(), *masks[1].unique().tolist()} == {0.0, 1 / 0.6}
    assert not torch.equal(masks[0][0], masks[0][1])
    first = in_turn(cores, state, x, 0)
    second = in_turn(cores, state, torch.cat([first * masks[0], x], -1), 1)
    third = in_turn(cores, state, torch.cat([second * masks[1], x], -1), 2)
    assert_close(stack(x, state)[0], torch.cat([first, second, third], -1))
    stack.noise = stack.begin_window(LANES)
    assert not torch.equal(stack.noise["masks"][0], masks[0])
    stack.noise = None
    with pytest.raises(InputError, match=r"begin_window\(num_lanes\).*call eval"):
        stack(x, state)


@pytest.mark.parametrize("recompute_every", [None, 3])
def test_the_noise_of_a_core_within_reaches_it(recompute_every):
    core = Shaken(7)
    model = RecurrentLM(13, Stack([GRU(7), core], "residual"))
    ids = torch.randint(13, (LANES, 9))
    carry, seen = None, []
    for start in (0, 4):
        window = Window(ids[:, start : start + 4], ids[:, start + 1 : start + 5])
        cost = Truncation(4, 6, recompute_every)(model, window, carry)
        cost.loss.backward()
        carry = cost.carry.detach()
        assert core.seen[0] is not None
        assert all(noise is core.seen[0] for noise in core.seen)
        seen.append(core.seen[0])
        core.seen.clear()
    assert not torch.equal(*seen)
    assert model.eval().begin_window(LANES) is None


def test_where_the_outputs_are_the_states_one_call_of_a_core_gives_both():
    stack, called = Stack([GRU(5, input_size=7), LSTM(4, input_size=5), RNN(3, input_size=4)]).double(), []
    for core in stack.cores:
        core.rnn[0].register_forward_hook(lambda *args, core=core: called.append(type(core).__name__))
    state = stack.initial_state(LANES)
    outputs, inside, after = stack.forward_through(inputs_of(7), state, 4)
    assert called == ["GRU", "LSTM", "LSTM", "RNN"]
    assert_close((outputs, after), stack(inputs_of(7), state))
    assert_close(inside, stack(inputs_of(7)[:, :4], state)[1])


@pytest.mark.parametrize("customize", [lambda core, hook: core.register_forward_hook(hook), None])
def test_what_a_user_changes_of_a_core_within_or_of_the_stack_is_not_passed_over(customize):
    class Doubled(Stack):
        def forward(self, inputs, state):
            outputs, after = super().forward(inputs, state)
            return 2 * outputs, after

    cores = [GRU(5, input_size=7), GRU(4, input_size=5)]
    stack = (Stack if customize else Doubled)(cores).double()
    state = stack.initial_state(LANES)
    before, _ = Stack(cores)(inputs_of(7), state)
    if customize:
        customize(cores[1], lambda core, given, returned: (2 * returned[0], returned[1]))
    assert_close(stack.forward_through(inputs_of(7), state, 4)[0], 2 * before)


def test_features_are_joined_in_the_memory_order_of_the_first():
    first, second = torch.randn(STEPS, LANES, 5).transpose(0, 1), torch.randn(LANES, STEPS, 4)
    for parts in ([first, second], [second, first]):
        joined = join_features(parts)
        assert torch.equal(joined, torch.cat(parts, -1))
        assert (joined.stride(0) < joined.stride(1)) == (parts[0] is first)


def cores_of(*sizes):
    return [GRU(after, input_size=before) for before, after in sizes]


@pytest.mark.parametrize(
    ("cores", "options", "message"),
    [
        ([], {}, r"cores=\[\]: at least one is needed"),
        ([nn.LSTM(3, 5)], {}, r"give lit_tbptt.LSTM\(hidden_size=5, num_layers=1, input_size=3\)"),
        (cores_of((7, 5), (4, 6)), {}, "with skip='none' their input_size must be 7, 5, and is 7, 4; give each"),
        (
            cores_of((7, 5), (5, 6), (6, 2)),
            {"skip": "dense"},
            "with skip='dense' their input_size must be 7, 12, 13, and is 7, 5, 6;",
        ),
        (
            cores_of((7, 7), (7, 6)),
            {"skip": "residual"},
            "with skip='residual' the input_size and output_size of all must be equal, and are 7 and 7, 7 and 6",
        ),
        ([GRU(5)] * 2, {}, "cores: one of them is given twice"),
        ([GRU(5)], {"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
        ([GRU(5)], {"skip": "sparse"}, "skip='sparse': must be none, residual or dense"),
        ([GRU(5)], {"norm": "batch"}, "norm='batch': must be None, layer or rms"),
        ([GRU(5)], {"dropout_over_time": "locked"}, "dropout_over_time='locked': must be free or shared"),
    ],
)
def test_what_does_not_fit_is_refused(cores, options, message):
    unchecked = inspect.unwrap(Stack.__init__)  # in the tests the type checker would be first
    with pytest.raises(InputError, match=message):
        unchecked(Stack(cores_of((3, 3))), cores, **options)


def test_a_core_without_weights_follows_the_dtype_of_the_others_masks():
    stack = Stack([Leaky(), Leaky()], dropout=0.4, dropout_over_time="shared").double()
    assert {mask.dtype for mask in stack.begin_window(LANES)["masks"]} == {torch.float64}
