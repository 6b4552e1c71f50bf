"""What a task returns and may leave out, and the noise that stays the same over a window."""

import pytest
import torch
from tasks import Recurrence, windows_of
from torch.testing import assert_close

from lit_tbptt import InputError, Task, Truncation, Window, WindowLoss


class Penalized(Recurrence):
    """Recurrence with the penalty h^2 / 2 at every time step."""

    def window_loss(self, window, state):
        h, losses, penalties = state["h"], [], []
        for x in window.inputs.unbind(1):
            h = self.w * h + x[:, None]
            losses.append(h.sum())
            penalties.append((h**2).sum() / 2)
        return WindowLoss(sum(losses), window.inputs.numel(), {"h": h}, sum(penalties))


def penalized_gradient(inputs, k1, k2, w=0.5):
    """d(loss + penalty)/dw with frozen w, every window from a graph of its own that begins at the far edge."""
    num_time_steps, total = inputs.shape[1], 0.0
    for start in range(0, num_time_steps, k1):
        weight = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        h = torch.zeros(len(inputs), dtype=torch.float64)
        objective = 0.0
        for step in range(min(start + k1, num_time_steps)):
            if step <= max(0, start - (k2 - k1)):
                h = h.detach()
            h = weight * h + inputs[:, step]
            if step >= start:
                objective = objective + (h + h**2 / 2).sum()
        objective.backward()
        total += weight.grad
    return total


@pytest.mark.parametrize("recompute_every", [None, 2])
@pytest.mark.parametrize(("k1", "k2"), [(5, 5), (3, 7), (4, 20), (1, 2)])
def test_a_penalty_counts_for_the_windows_own_time_steps_alone(k1, k2, recompute_every):
    inputs = torch.randn(3, 17, dtype=torch.float64)
    task, truncation, carry = Penalized(), Truncation(k1, k2, recompute_every), None
    values = []
    for window in windows_of(inputs, inputs, k1):
        cost = truncation(task, window, carry)
        (cost.loss + cost.penalty).backward()
        values.append((cost.loss.item(), cost.penalty.item()))
        carry = cost.carry.detach()
    assert_close(task.w.grad, penalized_gradient(inputs, k1, k2), rtol=0, atol=1e-10)
    (whole,) = windows_of(inputs, inputs, 17)
    expected = Truncation(17)(Penalized(), whole)
    assert sum(loss for loss, _ in values) == pytest.approx(expected.loss.item(), abs=1e-10)
    assert sum(penalty for _, penalty in values) == pytest.approx(expected.penalty.item(), abs=1e-10)


def test_without_a_penalty_there_is_none():
    inputs = torch.ones(2, 3, dtype=torch.float64)
    assert Truncation(3, recompute_every=2)(Recurrence(), Window(inputs, inputs)).penalty is None


class Predicting(Task):
    """h_t = h_{t-1} + x_t, predicted as it is, under a squared error."""

    def initial_state(self, num_lanes):
        return torch.zeros(num_lanes, dtype=torch.float64)

    def predict_window(self, window, state):
        outputs = state[:, None] + window.inputs.cumsum(1)
        return outputs, outputs[:, -1]

    def outputs_loss(self, outputs, window):
        return ((outputs - window.targets) ** 2).sum(), outputs.numel()


def test_window_loss_and_advance_follow_from_predict_window_and_outputs_loss():
    inputs, targets = torch.randn(2, 3, 5, dtype=torch.float64)
    task = Predicting()
    loss, num_targets, state, penalty = task.window_loss(Window(inputs, targets), task.initial_state(3))
    assert loss.item() == pytest.approx(((inputs.cumsum(1) - targets) ** 2).sum().item(), abs=1e-12)
    assert (num_targets, penalty) == (15, None)
    assert torch.equal(task.advance(Window(inputs, targets), task.initial_state(3)), state)
    assert_close(state, inputs.sum(1))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"Odd\.window_loss returned a NoneType: it must return \(loss, num_targets, state\)"),
        ((torch.zeros(()), 1), "returned a tuple of 2 values"),
        ((torch.zeros(3), 1, ()), r"returned a loss of \(3,\): it must be a tensor without axes, summed over the"),
        ((2.5, 1, ()), "returned a loss of float"),
        ((torch.zeros(()), 1, (), None, 0), "returned a tuple of 5 values"),
    ],
)
def test_a_task_that_returns_something_else_is_named(returned, message):
    class Odd(Task):
        def initial_state(self, num_lanes):
            return ()

        def window_loss(self, window, state):
            return returned

    with pytest.raises(InputError, match=message):
        Truncation(3)(Odd(), Window(torch.zeros(2, 3), torch.zeros(2, 3)))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(()), r"Odd\.outputs_loss returned a Tensor: it must return \(loss, num_targets\), or these and a"),
        ((torch.zeros(2, 3), 6), r"Odd\.outputs_loss returned a loss of \(2, 3\): it must be a tensor without axes"),
        ((2.5, 6), r"Odd\.outputs_loss returned a loss of float"),
        ((torch.zeros(()), 1, None, ()), r"Odd\.outputs_loss returned a tuple of 4 values"),
    ],
)
def test_outputs_loss_that_returns_something_else_is_named(returned, message):
    class Odd(Predicting):
        def outputs_loss(self, outputs, window):
            return returned

    with pytest.raises(InputError, match=message):
        Truncation(3)(Odd(), Window(torch.zeros(2, 3), torch.zeros(2, 3)))


@pytest.mark.parametrize(("returned", "what"), [(torch.zeros(2, 3), "a Tensor"), ((1, 2, 3), "a tuple of 3 values")])
def test_predict_window_that_returns_something_else_is_named(returned, what):
    class Odd(Predicting):
        def predict_window(self, window, state):
            return returned

    with pytest.raises(InputError, match=rf"Odd\.predict_window returned {what}: it must return \(outputs, state\)"):
        Truncation(3)(Odd(), Window(torch.zeros(2, 3), torch.zeros(2, 3)))


class Following(Task):
    """Its next state is what a test makes of the given one."""

    def __init__(self, follow):
        self.follow = follow

    def initial_state(self, num_lanes):
        return {"m": torch.zeros(num_lanes, 4), "n": [torch.zeros(num_lanes, dtype=torch.long)]}

    def window_loss(self, window, state):
        return window.inputs.sum(), window.inputs.numel(), self.follow(state)


def replaced(state):
    state["m"] = state["m"] + 1
    return state


@pytest.mark.parametrize("options", [{}, {"k2": 8}, {"recompute_every": 2}])
@pytest.mark.parametrize(
    ("follow", "message"),
    [
        (
            lambda state: state | {"m": torch.cat([state["m"], state["m"]], -1)},
            r"Following was given state\['m'\] of \(2, 4\) and returned \(2, 8\): its shape must stay the same; carry",
        ),
        (
            lambda state: state | {"n": [state["n"][0] / 2]},
            r"given state\['n'\]\[0\] of torch.int64 and returned torch.float32: its dtype must stay the same; make it",
        ),
        (
            lambda state: state | {"n": ()},
            r"given a state of \{'m': \(2, 4\), 'n': \[\(2,\)\]\} and returned one of \{.*\(\)\}: its structure must",
        ),
        (
            lambda state: state | {"m": None},
            r"given state\['m'\] of \(2, 4\) and returned a NoneType: return the state",
        ),
        (replaced, r"Following: tensors in the given state were replaced by others.* return a new dictionary or list"),
    ],
)
def test_a_state_unlike_the_given_one_is_refused(follow, message, options):
    windows = Window(torch.zeros(2, 10), torch.zeros(2, 10)).pieces(5)
    with pytest.raises(InputError, match=message):
        Truncation(5, **options)(Following(follow), next(iter(windows)))


def test_the_order_of_a_states_names_does_not_matter():
    task = Following(lambda state: dict(reversed(state.items())))
    Truncation(5)(task, Window(torch.zeros(2, 5), torch.zeros(2, 5)))


def test_under_autocast_the_dtypes_of_a_state_may_change():
    task = Following(lambda state: state | {"m": state["m"].bfloat16()})
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            Truncation(5)(task, Window(torch.zeros(2, 5), torch.zeros(2, 5))).carry.state["m"].dtype == torch.bfloat16
        )


def test_outputs_loss_may_give_a_penalty_too():
    class Penalizing(Predicting):
        def outputs_loss(self, outputs, window):
            return *super().outputs_loss(outputs, window), outputs.sum()

    inputs, targets = torch.randn(2, 3, 5, dtype=torch.float64)
    task = Penalizing()
    cost = task.window_loss(Window(inputs, targets), task.initial_state(3))
    assert cost.penalty == inputs.cumsum(1).sum()


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        (lambda task, window: task.initial_state(3), r"Nothing must define initial_state\(num_lanes\)"),
        (lambda task, window: task.window_loss(window, None), r"predict_window\(window, state\) and outputs_loss"),
        (lambda task, window: task.outputs_loss(None, window), r"outputs_loss\(outputs, window\)"),
    ],
)
def test_what_a_task_lacks_is_named(call, missing):
    class Nothing(Task):
        pass

    with pytest.raises(NotImplementedError, match=missing):
        call(Nothing(), Window(torch.zeros(3, 2), torch.zeros(3, 2)))
