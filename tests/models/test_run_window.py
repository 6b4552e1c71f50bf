"""A language model that runs over context and window at once computes what it does part by part."""

import pytest
import torch
from tasks import Leaky
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, RNN, RecurrentLM, Task, Truncation, Window

LANES, STEPS, VOCABULARY, WIDTH, HIDDEN = 3, 23, 131, 7, 5


class Nested(Leaky):
    """A user's own core, of one dtype with its inputs."""

    def forward(self, inputs, state):
        slow = state["slow"][0].to(inputs.dtype)
        return super().forward(inputs, {"slow": [slow], "seen": state["seen"]})


CORES = {
    "rnn": lambda: RNN(HIDDEN, input_size=WIDTH),
    "lstm": lambda: LSTM(HIDDEN, 3, learned_initial_state=True, input_size=WIDTH),
    "gru": lambda: GRU(HIDDEN, 2, learned_initial_state=True, input_size=WIDTH),
    "a user's": lambda: Nested(WIDTH),
}


class PartByPart(RecurrentLM):
    run_window = Task.run_window
    window_loss = Task.window_loss


def losses_and_gradients(kind, core, dtype, k1, horizons, resets, masked):
    torch.manual_seed(2)
    model, carry, found = kind(VOCABULARY, CORES[core]()).to(dtype), None, []
    tokens = torch.randint(VOCABULARY, (LANES, STEPS + 1))
    mask = torch.rand(LANES, STEPS) < 0.8 if masked else None
    truncation = Truncation(k1, k1)
    for number, start in enumerate(range(0, STEPS, k1)):
        truncation.k2 = horizons[number % len(horizons)]
        window = Window(tokens[:, :-1], tokens[:, 1:], None, mask).split(start)[1].split(k1)[0]
        if start in resets:
            window = window._replace(reset=torch.tensor([False, True, False]))
        loss, num_targets, carry, _ = truncation(model, window, carry)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        carry = carry.detach()
        found += [loss.detach(), torch.as_tensor(num_targets), gradients, carry.state, len(carry.context)]
        found += [part.inputs for part in carry.context]
    return found


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(
    ("k1", "horizons", "resets"),
    [
        (5, (5,), ()),
        (4, (6,), ()),
        (4, (13,), (8,)),
        (1, (7,), ()),
        (1, (4,), (3, 5)),
        (6, (40,), (12,)),
        (3, (12, 3, 4, 20), (9,)),
        (STEPS, (STEPS,), ()),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), pytest.param(torch.float32, 2e-5, marks=pytest.mark.slow)]
)
def test_losses_gradients_and_carries_are_the_same(core, dtype, tolerance, k1, horizons, resets):
    arguments = (core, dtype, k1, horizons, resets, k1 % 2 == 0)
    expected = losses_and_gradients(PartByPart, *arguments)
    assert_close(losses_and_gradients(RecurrentLM, *arguments), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("core", "k1", "k2", "calls"), [("lstm", 4, 6, 2), ("rnn", 4, 6, 1), ("a user's", 4, 6, 2), ("lstm", 4, 4, 1)]
)
def test_how_often_the_core_is_called_in_a_window(core, k1, k2, calls, monkeypatch):
    model, called, carry = RecurrentLM(VOCABULARY, CORES[core]()), [], None
    inner = model.core.rnn[0] if hasattr(model.core, "rnn") else model.core
    tokens, forward = torch.randint(VOCABULARY, (LANES, 3 * k1 + 1)), type(inner).forward
    monkeypatch.setattr(type(inner), "forward", lambda *args: (called.append(1), forward(*args))[1])
    counts = []
    for window in Window(tokens[:, :-1], tokens[:, 1:]).pieces(k1):
        carry = Truncation(k1, k2)(model, window, carry).carry.detach()
        counts.append(len(called))
    assert counts[2] - counts[1] == calls


def hook(module, given, result):
    return (2 * result[0], result[1]) if isinstance(result, tuple) else 2 * result


@pytest.mark.parametrize("where", ["core", "head", "model"])
def test_hooks_of_a_user_count(where):
    torch.manual_seed(2)
    tokens = torch.randint(VOCABULARY, (LANES, STEPS + 1))
    found = []
    for kind in (RecurrentLM, PartByPart):
        torch.manual_seed(2)
        model, carry = kind(VOCABULARY, CORES["lstm"]()), None
        plain = Truncation(4, 6)(model, Window(tokens[:, :4], tokens[:, 1:5])).loss
        getattr(model, where, model).register_forward_hook(hook)
        for window in Window(tokens[:, :-1], tokens[:, 1:]).pieces(4):
            loss, _, carry, _ = Truncation(4, 6)(model, window, carry)
            found.append(loss)
        assert not torch.isclose(plain, found[-6])
    assert_close(found[:6], found[6:])


class OwnAdvance(RecurrentLM):
    def advance(self, window, state):
        self.advanced = True
        return super().advance(window, state)


class OwnCore(RecurrentLM):
    def run_core(self, tokens, state):
        outputs, state = super().run_core(tokens, state)
        return 2 * outputs, state


class OwnLoss(RecurrentLM):
    def window_loss(self, window, state):
        loss, num_targets, state, _ = super().window_loss(window, state)
        return 2 * loss, num_targets, state


@pytest.mark.parametrize("kind", [OwnAdvance, OwnCore, OwnLoss])
def test_what_a_subclass_changes_counts(kind):
    model = kind(VOCABULARY, CORES["lstm"]())
    tokens = torch.randint(VOCABULARY, (LANES, 9))
    first, second = Window(tokens[:, :-1], tokens[:, 1:]).pieces(4)
    truncation = Truncation(4, 6)
    carry = truncation(model, first).carry.detach()
    cost = truncation(model, second, carry)
    if kind is OwnAdvance:
        assert model.advanced
        return
    state = model.core(model.embedding(tokens[:, :4]), model.initial_state(LANES))[1]
    logits, _ = model(second.inputs, state)
    expected, _ = model.outputs_loss(logits, second)
    assert_close(cost.loss, expected if kind is OwnCore else 2 * expected)


class Loud(LSTM):
    def forward(self, inputs, state):
        outputs, state = super().forward(inputs, state)
        return 10 * outputs, state


def loss_of_three_windows(model):
    tokens = torch.randint(VOCABULARY, (LANES, 13), generator=torch.Generator().manual_seed(5))
    carry, total = None, 0.0
    for window in Window(tokens[:, :-1], tokens[:, 1:]).pieces(4):
        loss, _, carry, _ = Truncation(4, 6)(model, window, carry)
        total += loss.item()
    return total


def test_the_forward_of_a_cores_subclass_is_what_is_trained():
    torch.manual_seed(2)
    model = RecurrentLM(VOCABULARY, Loud(HIDDEN, input_size=WIDTH))
    plain = PartByPart(VOCABULARY, Loud(HIDDEN, input_size=WIDTH))
    plain.load_state_dict(model.state_dict())
    assert loss_of_three_windows(model) == pytest.approx(loss_of_three_windows(plain), abs=1e-4)
    quiet = RecurrentLM(VOCABULARY, LSTM(HIDDEN, input_size=WIDTH))
    quiet.load_state_dict(model.state_dict())
    before = loss_of_three_windows(quiet)
    quiet.core.forward = lambda inputs, state: (lambda made: (10 * made[0], made[1]))(
        LSTM.forward(quiet.core, inputs, state)
    )
    assert loss_of_three_windows(quiet) == pytest.approx(loss_of_three_windows(plain), abs=1e-4)
    assert loss_of_three_windows(quiet) != pytest.approx(before, abs=1e-2)


@pytest.mark.parametrize("name", ["window_loss", "advance", "run_core", "predict_window", "outputs_loss", "forward"])
def test_a_method_that_is_set_on_an_instance_is_called(name):
    model, called = RecurrentLM(VOCABULARY, CORES["lstm"]()), []
    method = getattr(model, name)
    setattr(model, name, lambda *args: (called.append(1), method(*args))[1])
    loss_of_three_windows(model)
    assert called


def test_an_embedding_of_the_users_gets_lanes_first():
    model, shapes = RecurrentLM(VOCABULARY, CORES["lstm"]()), []
    model.embedding.register_forward_hook(lambda module, given, result: shapes.append(tuple(given[0].shape)))
    loss_of_three_windows(model)
    assert {lanes for lanes, _ in shapes} == {LANES}
