"""Truncated gradients against slow ones, written out without anything of the package's."""

from itertools import chain

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, RNN, Task, Truncation, Window

LANES, STEPS, FEATURES, HIDDEN, OUTPUTS, RATE = 3, 13, 7, 5, 2, 0.3
TRUNCATIONS = [(k1, k2) for k1 in range(1, STEPS + 1) for k2 in range(k1, STEPS + 1)]


def rnn_cell(x, h, w):
    return (torch.tanh(x @ w[0].T + w[2] + h[0] @ w[1].T + w[3]),)


def lstm_cell(x, h, w):
    i, f, g, o = (x @ w[0].T + w[2] + h[0] @ w[1].T + w[3]).chunk(4, 1)
    cell = f.sigmoid() * h[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def gru_cell(x, h, w):
    r, z, n = (x @ w[0].T + w[2]).chunk(3, 1)
    hr, hz, hn = (h[0] @ w[1].T + w[3]).chunk(3, 1)
    z = (z + hz).sigmoid()
    return ((1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * h[0],)


CELLS = {RNN: rnn_cell, LSTM: lstm_cell, GRU: gru_cell}


class Squared(Task, nn.Module):
    """Regression on `[lane, time, feature]` inputs."""

    def __init__(self, core):
        super().__init__()
        self.core = core
        self.head = nn.Linear(HIDDEN, OUTPUTS)
        self.double()

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def advance(self, window, state):
        return self.core(window.inputs, state)[1]

    def window_loss(self, window, state):
        outputs, state = self.core(window.inputs, state)
        return ((self.head(outputs) - window.targets) ** 2).sum(), window.targets.numel(), state


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(LANES, STEPS, FEATURES, **draw), torch.randn(LANES, STEPS, OUTPUTS, **draw)


def make(core_class):
    torch.manual_seed(2)
    task = Squared(core_class(HIDDEN, learned_initial_state=True, input_size=FEATURES))
    for initial in task.core.initial.values():
        nn.init.normal_(initial, std=0.3)
    return task


def parts(task):
    """The weights by what the hand-written cells do with them: the cell's, the output layer's, the initial state."""
    initial = [task.core.initial[name] for name in task.core.state_names]
    return list(task.core.rnn.parameters()), list(task.head.parameters()), initial


def flat(lists):
    return list(chain.from_iterable(lists))


def middle(k1):
    """The start of the window nearest to the middle of the sequence; None where there is only one window."""
    starts = range(k1, STEPS, k1)
    return min(starts, key=lambda start: abs(start - STEPS // 2), default=None)


def restarted(step, reset, state, initial):
    """At step 0 every lane is reset, at step `reset` lane 1 does."""
    fresh = [leaf.expand(LANES, HIDDEN) for leaf in initial]
    if step == 0:
        return fresh
    lane = torch.tensor([False, True, False])[:, None]
    return [torch.where(lane, new, old) for new, old in zip(fresh, state, strict=True)] if step == reset else state


def influences(task, data, reset):
    """One graph over the whole sequence in which every step has weights of its own.

    Returns for every loss t the gradients to the weights of each step s <= t, to the output layer, and to the initial
    state as it was used at each reset. A truncated gradient is a sum of some of them; nothing is detached.
    """
    cell_weights, head, initial = parts(task)
    cell = CELLS[type(task.core)]
    copies = [[w.detach().clone().requires_grad_() for w in cell_weights] for _ in range(STEPS)]
    starts = {step: [w.detach().clone().requires_grad_() for w in initial] for step in (0, reset) if step is not None}
    state, losses = None, []
    for step, weights in enumerate(copies):
        state = restarted(step, reset, state, starts.get(step, starts[0]))
        state = cell(data[0][:, step], state, weights)
        losses.append(((state[0] @ head[0].T + head[1] - data[1][:, step]) ** 2).sum())
    table = []
    for loss in losses:
        every = [*flat(copies), *head, *flat(starts.values())]
        found = iter(torch.autograd.grad(loss, every, retain_graph=True, materialize_grads=True))
        table.append(
            (
                [[next(found) for _ in cell_weights] for _ in copies],
                [next(found) for _ in head],
                {step: [next(found) for _ in initial] for step in starts},
            )
        )
    return table


def truncated(table, k1, k2):
    """The gradients of the cell, the output layer and the initial state under truncation, from the influences."""
    total = [torch.zeros_like(w) for w in [*table[0][0][0], *table[0][1], *table[0][2][0]]]
    for start in range(0, STEPS, k1):
        far_edge = max(0, start - (k2 - k1))
        for by_step, head, by_start in table[start : start + k1]:
            within = [step for step in by_start if step >= far_edge]
            for step in range(far_edge, STEPS):
                for place, gradient in enumerate(by_step[step]):
                    total[place] += gradient
            for place, gradient in enumerate(head):
                total[len(by_step[0]) + place] += gradient
            for step in within:
                for place, gradient in enumerate(by_start[step]):
                    total[len(by_step[0]) + len(head) + place] += gradient
    return total


def ours(task, data, k1, k2, reset, rate):
    """Gradients added over the windows with `rate` None, else the weights after an SGD step per window."""
    truncation, carry = Truncation(k1, k2), None
    for start in range(0, STEPS, k1):
        lanes = torch.tensor([False, True, False]) if start == reset else None
        inputs, targets = (part[:, start : start + k1] for part in data)
        loss, _, carry, _ = truncation(task, Window(inputs, targets, lanes), carry)
        carry = carry.detach()
        loss.backward()
        if rate is not None:
            sgd(task, rate)
    weights = flat(parts(task))
    return [w.grad if rate is None else w.detach() for w in weights]


def sgd(task, rate):
    with torch.no_grad():
        for weight in task.parameters():
            if weight.grad is not None:
                weight -= rate * weight.grad / 50
    task.zero_grad()


def by_hand(task, data, k1, k2, reset, rate):
    """SGD between windows: every window is run from the latest state at its far edge, detached, to its end."""
    cell = CELLS[type(task.core)]
    latest = {0: [torch.zeros(LANES, HIDDEN, dtype=torch.float64)] * len(task.core.initial)}
    for start in range(0, STEPS, k1):
        end, far_edge = min(start + k1, STEPS), max(0, start - (k2 - k1))
        cell_weights, head, initial = parts(task)
        state, loss = [leaf.detach() for leaf in latest[far_edge]], 0
        for step in range(far_edge, end):
            state = restarted(step, reset if reset is not None and reset <= start else None, state, initial)
            state = cell(data[0][:, step], state, cell_weights)
            latest[step + 1] = state
            if step >= start:
                loss = loss + ((state[0] @ head[0].T + head[1] - data[1][:, step]) ** 2).sum()
        task.zero_grad()
        loss.backward()
        sgd(task, rate)
    return [w.detach() for w in flat(parts(task))]


@pytest.fixture(scope="module")
def tables():
    return {}


@pytest.mark.parametrize("core_class", CELLS)
@pytest.mark.parametrize(("k1", "k2"), TRUNCATIONS)
def test_frozen_weights_against_the_influence_of_every_step(core_class, k1, k2, data, tables):
    for reset in {None, middle(k1)}:
        if (core_class, reset) not in tables:
            tables[core_class, reset] = influences(make(core_class), data, reset)
        expected = truncated(tables[core_class, reset], k1, k2)
        assert_close(ours(make(core_class), data, k1, k2, reset, None), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("core_class", CELLS)
@pytest.mark.parametrize(("k1", "k2"), TRUNCATIONS)
def test_sgd_between_windows_against_a_loop_written_out(core_class, k1, k2, data):
    for reset in {None, middle(k1)}:
        found = ours(make(core_class), data, k1, k2, reset, RATE)
        expected = by_hand(make(core_class), data, k1, k2, reset, RATE)
        assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("core_class", CELLS)
@pytest.mark.parametrize("k1", range(1, STEPS + 1))
@pytest.mark.parametrize("beyond", [0, 27])
def test_a_horizon_beyond_the_sequence_is_full_backpropagation(core_class, k1, beyond, data):
    # T counts in whole windows: a horizon is k2 - k1 tokens before a window's start, however short the last one is.
    k2 = -(-STEPS // k1) * k1 + beyond
    task = make(core_class)
    loss, *_ = task.window_loss(Window(*data), task.initial_state(LANES))
    loss.backward()
    expected = [w.grad for w in flat(parts(task))]
    assert_close(ours(make(core_class), data, k1, k2, None, None), expected, rtol=0, atol=1e-12)


def test_the_oracles_can_tell_truncations_apart(data):
    """The twin of the tests above: other horizons, a stale far edge, resets elsewhere are another result."""
    table = influences(make(LSTM), data, None)
    all_of_them = [torch.cat([part.flatten() for part in truncated(table, 1, k2)]) for k2 in range(1, STEPS + 1)]
    for k2, gradient in enumerate(all_of_them[1:]):
        assert (gradient - all_of_them[k2]).norm() > 1e-4
    runs = [by_hand(make(LSTM), data, 3, 5, reset, RATE) for reset in (None, 3, 6)]
    assert all((runs[0][0] - run[0]).norm() > 1e-4 for run in runs[1:])
