"""AR and TAR of a language model: against loops over lanes and time steps, wherever windows are cut."""

import pytest
import torch
from tasks import windows_of
from torch import nn
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, InputError, RecurrentCore, RecurrentLM, Run, Truncation, Window
from lit_tbptt.models import language_model
from lit_tbptt.tbptt.task import Task

LANES, TIMES, WIDTH, HIDDEN, WORDS = 3, 18, 5, 6, 131
AR, TAR = 2.0, 0.7
RESETS = [(1, 0), (2, 2), (3, 0)]


def network(core=None, activation=AR, temporal=TAR, **options):
    torch.manual_seed(4)
    core = LSTM(HIDDEN, 2, input_size=WIDTH) if core is None else core
    return RecurrentLM(WORDS, core, activation_penalty=activation, temporal_penalty=temporal, **options).double()


def tokens():
    return torch.randint(WORDS, (LANES, TIMES + 1), generator=torch.Generator().manual_seed(7))


def masks():
    """One lane ends early, one begins late, as after a burn-in."""
    mask = torch.ones(LANES, TIMES, dtype=torch.bool)
    mask[1, 13:] = mask[2, :3] = mask[0, 6] = False
    return mask


def windows(k1, masked=True):
    ids = tokens()
    cut = windows_of(ids[:, :-1], ids[:, 1:], k1, RESETS)
    parts = masks().split(k1, 1) if masked else [None] * len(cut)
    return [window._replace(mask=mask) for window, mask in zip(cut, parts, strict=True)]


def entering(model, window, state):
    """The core's state that a window is run from, with its resets."""
    if window.reset is None:
        return state
    initial = model.core.initial_state(LANES)
    return {name: torch.where(window.reset[:, None, None], initial[name], state[name]) for name in state}


def steps(model, window, state):
    """The outputs and states of the core, one time step at a time."""
    for inputs in window.inputs.unbind(1):
        outputs, state = model.core(model.embedding(inputs)[:, None], state)
        yield outputs[:, 0], state


def by_hand(model, k1, k2, dropout_masks):
    """The penalty of each window and the gradients of all losses and penalties, by loops."""
    states, state, penalties, cut = [], model.core.initial_state(LANES), [], windows(k1)
    with torch.no_grad():
        for window in cut:
            for number in range(window.num_time_steps):
                states.append(state)
                state = entering(model, window, state) if number == 0 else state
                ((_, state),) = steps(model, window.split(number)[1].split(1)[0], state)
    model.zero_grad()
    starts = range(0, TIMES, k1)
    for number, (start, window) in enumerate(zip(starts, cut, strict=True)):
        edge = max(0, start - (k2 - k1))
        state, outputs = states[edge], []
        for earlier, first in zip(cut[: number + 1], starts, strict=False):
            if first + earlier.num_time_steps <= edge:
                continue
            if first >= edge:
                state = entering(model, earlier, state)
            part = earlier if first >= edge else earlier.split(edge - first)[1]
            for output, after in steps(model, part, state):
                outputs.append(output)
                state = after
        outputs = outputs[-window.num_time_steps :]
        loss = penalty = torch.zeros((), dtype=torch.float64)
        for time, output in enumerate(outputs):
            dropped = output * dropout_masks[number][:, 0]
            logits = model.head(dropped).log_softmax(1)
            for lane in range(LANES):
                if not window.mask[lane, time]:
                    continue
                loss = loss - logits[lane, window.targets[lane, time]]
                penalty = penalty + AR * (dropped[lane] ** 2).sum() / HIDDEN
                if time:
                    penalty = penalty + TAR * ((output[lane] - outputs[time - 1][lane]) ** 2).sum() / HIDDEN
        (loss + penalty).backward()
        penalties.append(penalty.detach())
    return penalties, [parameter.grad.clone() for parameter in model.parameters()]


def truncated(model, k1, k2, recompute_every=None, masked=True):
    """The same by `Truncation`; and the dropout masks it drew."""
    torch.manual_seed(3)
    model.zero_grad()
    truncation, carry, penalties, drawn = Truncation(k1, k2, recompute_every), None, [], []
    for window in windows(k1, masked):
        cost = truncation(model, window, carry)
        drawn.append(None if model.noise is None else model.noise["output"])
        (cost.loss + cost.penalty).backward()
        penalties.append(cost.penalty.detach())
        carry = cost.carry.detach()
    return penalties, [parameter.grad.clone() for parameter in model.parameters()], drawn


@pytest.mark.parametrize("recompute_every", [None, 2, 3])
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 10), (5, 7), (7, 18)])
def test_both_penalties_equal_loops_by_hand(k1, k2, recompute_every):
    model = network(output_dropout=0.3, dropout_over_time="shared")
    penalties, gradients, drawn = truncated(model, k1, k2, recompute_every)
    expected = by_hand(model, k1, k2, drawn)
    assert_close((penalties, gradients), expected, rtol=0, atol=1e-10)
    assert min(penalties) > 0.1


def test_they_are_the_means_of_the_authors_code():
    """Their TAR is a mean over the pairs of a window, this one over its targets."""
    model, k1 = network(output_dropout=0.4, dropout_over_time="shared"), 11
    window = windows(k1, masked=False)[0]
    run = Run(model, Truncation(k1))
    cost = run(window, None)
    objective = run.objective(cost)
    h, _ = model.core(model.embedding(window.inputs), model.core.initial_state(LANES))
    dropped = h * model.noise["output"]
    raw_loss = nn.functional.cross_entropy(model.head(dropped).flatten(0, 1), window.targets.flatten())
    expected = raw_loss + AR * dropped.pow(2).mean() + TAR * (k1 - 1) / k1 * (h[:, 1:] - h[:, :-1]).pow(2).mean()
    assert_close(objective, expected, rtol=0, atol=1e-12)
    assert_close(cost.total_loss / cost.total_targets, raw_loss, rtol=0, atol=1e-12)  # what is reported


@pytest.mark.slow
@pytest.mark.parametrize(("core", "masked"), [("LSTM", False), ("GRU in two calls", True)])
def test_no_cut_loses_a_pair(core, masked):
    """Segments of any length, the far edge inside a window or not, and the plain form: with free dropout, too."""
    for k2 in (7, 12):
        model = network(
            LSTM(HIDDEN, 2, dropout=0.2, input_size=WIDTH) if core == "LSTM" else InTwoCalls(HIDDEN),
            embedding_dropout=0.1,
            output_dropout=0.3,
        )
        expected = truncated(model, 7, k2, masked=masked)[:2]
        for every in (2, 3, 5, 8):
            assert_close(truncated(model, 7, k2, every, masked)[:2], expected, rtol=0, atol=1e-12)
    model = network()
    expected = truncated(model, 7, 9, masked=masked)
    model.run_window = lambda *args: Task.run_window(model, *args)
    assert_close(truncated(model, 7, 9, masked=masked), expected, rtol=0, atol=1e-12)


class InTwoCalls(GRU):
    """A core that has no state inside a call."""

    def forward_through(self, inputs, state, far_edge):
        return RecurrentCore.forward_through(self, inputs, state, far_edge)


def test_the_last_output_of_a_window_is_no_neighbour_of_the_next_ones_first():
    model = network(activation=0.0)
    first, second, *_ = windows(4)
    truncation = Truncation(4, recompute_every=3)
    carry = truncation(model, first).carry
    assert carry.state["follows"].all()
    jumped = carry._replace(state=carry.state | {"output": carry.state["output"] + 100})
    costs = [truncation(model, second, each.detach()) for each in (carry, jumped)]
    assert costs[0].penalty == costs[1].penalty > 0


def test_the_state_is_the_cores_without_a_temporal_penalty():
    assert network(temporal=0.0).initial_state(2).keys() == {"hidden", "cell"}
    assert network().initial_state(2).keys() == {"core", "output", "follows"}
    window = windows(7)[0]
    assert Truncation(7)(network(activation=0.0, temporal=0.0), window).penalty is None


def test_evaluation_has_no_penalty_and_the_same_outputs():
    model, plain = network().eval(), network(activation=0.0, temporal=0.0).eval()
    window = windows(7)[0]
    cost, expected = (each.window_loss(window, each.initial_state(LANES)) for each in (model, plain))
    assert cost.penalty is None
    assert_close(cost.loss, expected.loss, rtol=0, atol=0)
    assert_close(cost.state["core"], expected.state, rtol=0, atol=0)
    assert model.generate([[1, 2], [3]], 6) == plain.generate([[1, 2], [3]], 6)


def test_the_fast_forms_are_kept(monkeypatch):
    calls = []
    joined = language_model.linear_nats
    monkeypatch.setattr(language_model, "linear_nats", lambda *args: calls.append("joined") or joined(*args))
    model = network()
    model.core.forward_through = _counted(model.core.forward_through, calls)
    truncation, carry = Truncation(6, 9), None
    for window in windows(6):
        carry = truncation(model, window._replace(reset=None), carry).carry.detach()
    assert calls == ["core", "joined"] * 3


def _counted(function, calls):
    return lambda *args: calls.append("core") or function(*args)


def test_half_precision_sums_in_float32():
    """The squares of 5,000 outputs of 100 would overflow."""
    model = network()
    outputs = torch.full((LANES, 50, HIDDEN), 100.0, dtype=torch.float16)
    state = model.initial_state(LANES)
    penalty, state = model.penalties(outputs, outputs, None, state)
    assert penalty == AR * LANES * 50 * 100**2
    assert state["output"].dtype == torch.float64


@pytest.mark.parametrize("name", ["activation_penalty", "temporal_penalty"])
def test_factors_are_checked(name):
    for value in (-0.1, float("inf"), float("nan")):
        with pytest.raises(InputError, match=f"{name}={value}: must be 0 or more"):
            RecurrentLM(WORDS, GRU(WIDTH), **{name: value})


class Smoothed(RecurrentLM):
    def outputs_loss(self, outputs, window):
        loss, num_targets = super().outputs_loss(outputs, window)
        return loss + 0.1 * outputs.square().sum(), num_targets


class Own(RecurrentLM):
    def window_loss(self, window, state):
        return super().window_loss(window, state)


def test_where_the_cores_outputs_are_not_known_they_are_refused():
    window = Window(tokens()[:, :4], tokens()[:, 1:5])
    message = r"activation_penalty=0.5 and temporal_penalty=0.0 with a .* overrides a part of its loss"
    hooked, on_the_object = (RecurrentLM(WORDS, GRU(WIDTH), activation_penalty=0.5) for _ in range(2))
    hooked.register_forward_hook(lambda *args: None)
    on_the_object.outputs_loss = lambda outputs, window: (outputs.sum(), 1)
    for model in (hooked, on_the_object, Smoothed(WORDS, GRU(WIDTH), activation_penalty=0.5)):
        with pytest.raises(InputError, match=message):
            Truncation(4)(model, window)
    assert Truncation(4)(Own(WORDS, GRU(WIDTH), activation_penalty=0.5), window).penalty > 0
    assert Truncation(4)(Smoothed(WORDS, GRU(WIDTH)), window).penalty is None
