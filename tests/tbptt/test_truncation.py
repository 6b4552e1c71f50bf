"""Truncated gradients as exact fractions, where lanes are reset, and what truncations are refused."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from tasks import EXACT_GRADIENTS, Recurrence, windows_of

from lit_tbptt import InputError, Task, Truncation, Window
from lit_tbptt.tbptt.carry import Carry


def gradient(task, windows, k1, k2):
    truncation, carry = Truncation(k1, k2), None
    for window in windows:
        loss, _, carry, _ = truncation(task, window, carry)
        carry = carry.detach()
        loss.backward()
    return task.w.grad


@pytest.mark.parametrize(("k1", "k2"), EXACT_GRADIENTS)
def test_the_exact_gradient_of_every_truncation(k1, k2):
    ones = torch.ones(1, 12, dtype=torch.float64)
    found = gradient(Recurrence(), windows_of(ones, ones, k1), k1, k2)
    assert Fraction(found.item()) == Fraction(EXACT_GRADIENTS[k1, k2])


@pytest.mark.parametrize(("k1", "k2"), [(1, 4), (2, 5), (3, 3), (3, 7), (5, 13), (4, 40)])
def test_a_reset_inside_the_context_cuts_there_for_its_lane_only(k1, k2):
    inputs = torch.randn(3, 13, dtype=torch.float64)
    resets = [(2, 1), (3, 2)] if k1 < 5 else [(1, 1), (2, 2)]
    together = gradient(Recurrence(), windows_of(inputs, inputs, k1, resets), k1, k2)
    alone = torch.zeros((), dtype=torch.float64)
    for lane in range(3):
        cuts = [0, *(window * k1 for window, which in resets if which == lane), 13]
        for start, end in pairwise(cuts):
            piece = inputs[lane : lane + 1, start:end]
            alone = alone + gradient(Recurrence(), windows_of(piece, piece, k1), k1, k2)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_what_is_carried_has_no_graph_and_no_more_context_than_needed():
    truncation, task, carry = Truncation(3, 7), Recurrence(), None
    inputs = torch.randn(2, 19, dtype=torch.float64)
    for window in windows_of(inputs, inputs, 3):
        carry = truncation(task, window, carry).carry.detach()
        assert not carry.state["h"].requires_grad
        assert sum(part.num_time_steps for part in carry.context) <= 4
    assert torch.equal(torch.cat([part.inputs for part in carry.context], 1), inputs[:, -4:])


@pytest.mark.parametrize("recompute_every", [None, 2])
@pytest.mark.parametrize("horizons", [(3, 8, 8, 3, 12, 5, 5), (9, 9, 4, 3, 3, 20, 20), (20, 3, 20, 3, 20, 3, 20)])
def test_a_horizon_that_changes_holds_from_the_next_window_on(horizons, recompute_every):
    k1, inputs, resets = 3, torch.randn(4, 20, dtype=torch.float64), {(1, 2), (4, 0), (5, 3)}
    task, truncation, carry = Recurrence(), Truncation(k1, horizons[0], recompute_every), None
    for window, k2 in zip(windows_of(inputs, inputs, k1, resets), horizons, strict=True):
        truncation.k2 = k2
        loss, _, carry, _ = truncation(task, window, carry)
        loss.backward()
        carry = carry.detach()
    expected, carried_from = torch.zeros((), dtype=torch.float64), 0
    for number, k2 in enumerate(horizons):
        start, end = number * k1, min((number + 1) * k1, 20)
        w, h, loss = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), torch.zeros(4).double(), 0.0
        for step in range(end):
            if step <= max(carried_from, start - (k2 - k1)):  # nothing is known of what lies before a carried state
                h = h.detach()
            if step % k1 == 0:
                h = torch.stack([0 * h[lane] if (step // k1, lane) in resets else h[lane] for lane in range(4)])
            h = w * h + inputs[:, step]
            loss = loss + (h.sum() if step >= start else 0.0)
        loss.backward()
        expected += w.grad
        carried_from = max(carried_from, end - (k2 - k1))
    torch.testing.assert_close(task.w.grad, expected, rtol=0, atol=1e-11)


def test_a_horizon_that_is_too_short_is_refused_and_the_old_one_stays():
    truncation = Truncation(5, 9)
    with pytest.raises(InputError, match="k2=4 with k1=5"):
        truncation.k2 = 4
    assert truncation.k2 == 9


@pytest.mark.parametrize(
    ("k1", "k2", "message"),
    [(0, None, "k1=0.*1 or more"), (-3, 5, "k1=-3.*1 or more"), (5, 4, "k2=4 with k1=5.*k2 >= k1")],
)
def test_truncations_that_make_no_sense_are_refused(k1, k2, message):
    with pytest.raises(InputError, match=message):
        Truncation(k1, k2)


def test_a_window_longer_than_k1_is_refused():
    inputs = torch.ones(2, 5, dtype=torch.float64)
    with pytest.raises(InputError, match="window of 5 time steps with k1=4"):
        Truncation(4)(Recurrence(), Window(inputs, inputs))


def test_another_number_of_lanes_is_refused():
    inputs = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="2 lanes after windows of 5"):
        Truncation(3)(Recurrence(), Window(inputs, inputs), Carry(Recurrence().initial_state(5)))


@pytest.mark.parametrize(
    ("horizon", "expected"), [(5, 5), (10, 10), (20, 16.476), (30, 9.870), (40, 0.5655), (41, None), (60, -5.897)]
)
def test_influence_balancing(horizon, expected):
    """Tallec & Ollivier 2017: short horizons get even the sign of the derivative wrong, which is -6."""
    n, p = 23, 10

    class Influence(Task):
        def __init__(self):
            self.theta = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def initial_state(self, num_lanes):
            return torch.zeros(num_lanes, n, dtype=torch.float64)

        def window_loss(self, window, state):
            matrix = torch.eye(n, dtype=torch.float64) / 2 + torch.diag(torch.full((n - 1,), 0.5), 1)
            signs = torch.ones(n, dtype=torch.float64)
            signs[p:] = -1
            for _ in range(window.num_time_steps):
                state = state @ matrix.T + self.theta * signs
            return state[:, 0].sum(), 1, state

    task, truncation, carry = Influence(), Truncation(1, horizon), None
    for _ in range(120):
        loss, _, carry, _ = truncation(task, Window(torch.ones(1, 1), torch.ones(1, 1)), carry)
        carry = carry.detach()
    loss.backward()
    found = task.theta.grad.item()
    if expected is None:
        assert found < 0
    else:
        assert found == pytest.approx(expected, abs=6e-4)


class InPlace(Recurrence):
    """Counts its steps in the state, in place."""

    def initial_state(self, num_lanes):
        return {"h": super().initial_state(num_lanes)["h"], "counts": [torch.zeros(num_lanes)]}

    def window_loss(self, window, state):
        state["counts"][0] += window.num_time_steps
        total, count, after = super().window_loss(window, state)
        return total, count, {"h": after["h"], "counts": state["counts"]}


@pytest.mark.parametrize("options", [{}, {"k2": 8}, {"recompute_every": 2}])
def test_a_state_that_is_changed_in_place_is_named(options):
    windows = windows_of(torch.ones(2, 12, dtype=torch.float64), torch.zeros(2, 12), 3)
    truncation = Truncation(3, **options)
    with pytest.raises(
        InputError, match=r"state\['counts'\]\[0\] was changed in place, .* return a new tensor, n \+ 1"
    ):
        truncation(InPlace(), windows[0])


def test_an_initial_state_whose_first_axis_is_another_is_named():
    class Layers(Recurrence):
        def initial_state(self, num_lanes):
            return torch.zeros(1, num_lanes, 8)

    message = r"Layers.initial_state\(2\) returned tensors of the shapes \(1, 2, 8\): .* the lane axis first"
    with pytest.raises(InputError, match=message):
        Truncation(3)(Layers(), windows_of(torch.ones(2, 3), torch.zeros(2, 3), 3)[0])


@pytest.mark.parametrize(
    ("leaf", "message"),
    [(None, r"state\['more'\] is a NoneType"), (3, r"state\['more'\] is a int"), (torch.zeros(5), "lane axis first")],
)
def test_a_state_of_something_else_than_tensors_by_lane_is_refused(leaf, message):
    class More(Recurrence):
        def initial_state(self, num_lanes):
            return super().initial_state(num_lanes) | {"more": leaf}

    with pytest.raises(InputError, match=message):
        Truncation(3)(More(), windows_of(torch.ones(2, 3), torch.zeros(2, 3), 3)[0])
