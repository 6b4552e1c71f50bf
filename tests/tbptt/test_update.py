"""Runs that can be repeated, and the update that steps after every window."""

import inspect
import os

import pytest
import torch
import torch.distributed as dist
from descent import Descent
from processes import together
from tasks import Recurrence, windows_of
from torch.testing import assert_close

from lit_tbptt import GRU, InputError, Place, RecurrentLM, Run, StepPerWindow, Task, Truncation, WindowLoss
from lit_tbptt.ranks import Agreement

LANES, K1, K2, VOCABULARY = 3, 4, 9, 11


def language_model(over_time):
    torch.manual_seed(4)
    core = GRU(6, 2, dropout=0.3, input_size=5)
    return RecurrentLM(
        VOCABULARY, core, embedding_dropout=0.4, output_dropout=0.3, dropout_over_time=over_time
    ).double()


def windows(count, seed=7):
    ids = torch.randint(VOCABULARY, (LANES, count * K1 + 1), generator=torch.Generator().manual_seed(seed))
    return windows_of(ids[:, :-1], ids[:, 1:], K1)


def twice(over_time, recompute_every=None, repeatable=True, num_ranks=1, rank=0):
    """Loss, targets, gradients and the generator of two calls of one run, and of a run of the next window."""
    model = language_model(over_time)
    torch.manual_seed(5 + rank)
    run = Run(model, Truncation(K1, K2, recompute_every), Agreement(num_ranks), repeatable)
    first, second, third = windows(3, seed=7 + rank)
    carry = run(first, None).carry.detach()
    results = []
    for window in (second, second, third):
        model.zero_grad()
        cost = run(window, carry)
        cost.loss.backward()
        gradients = [weight.grad for weight in model.parameters()]
        state = list(cost.carry.state.values())
        results.append(
            [cost.total_loss, torch.as_tensor(cost.total_targets), *state, *gradients, torch.get_rng_state()]
        )
    return [[part.detach().clone() for part in result] for result in results]


@pytest.mark.parametrize("recompute_every", [None, 3])
@pytest.mark.parametrize("over_time", ["free", "shared"])
def test_a_run_repeated_from_the_same_carry_is_the_same(over_time, recompute_every):
    first, second, other = twice(over_time, recompute_every)
    assert_close(second, first, rtol=0, atol=0)
    assert not torch.equal(other[0], first[0])
    first, second, _ = twice(over_time, recompute_every, repeatable=False)
    assert not torch.equal(second[0], first[0])


def test_another_carry_or_window_is_no_repetition():
    model = language_model("free")
    run, (window, other) = Run(model, Truncation(K1), repeatable=True), windows(2)
    first = run(window, None)
    again = run(window, None)
    assert torch.equal(again.loss, first.loss)
    hidden = [run(window, cost.carry.detach()).carry.state["hidden"] for cost in (first, again)]
    assert not torch.equal(*hidden)
    carry = first.carry.detach()
    run(window, carry)
    before = torch.get_rng_state()
    run(other, carry)
    assert not torch.equal(torch.get_rng_state(), before)


def on_a_rank(over_time):
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]))
    found = twice(over_time, num_ranks=2, rank=dist.get_rank())
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("over_time", ["free", "shared"])
def test_a_run_is_repeated_on_two_processes_alike(over_time, tmp_path):
    (first, again, _), (other, other_again, _) = together(tmp_path, 2, on_a_rank, over_time)
    assert_close(again, first, rtol=0, atol=0)
    assert_close(other_again, other, rtol=0, atol=0)
    assert torch.equal(first[0], other[0])  # the loss of both
    assert not torch.equal(first[2], other[2])  # each has lanes of its own


def test_what_truncation_returns_is_attached_and_an_update_detaches_it():
    inputs = torch.randn(LANES, K1, dtype=torch.float64)
    task, (window,) = Recurrence(), windows_of(inputs, inputs, K1)
    assert Truncation(K1)(task, window).carry.state["h"].requires_grad
    optimizer = Descent(task, 0.1)
    updated = StepPerWindow()(window, None, Run(task, Truncation(K1)), optimizer, Place())
    assert not updated.carry.state["h"].requires_grad
    assert updated.stepped


class Squares(Task, torch.nn.Module):
    """Loss (w x)^2 and penalty w^2 at every time step."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def initial_state(self, num_lanes):
        return ()

    def window_loss(self, window, state):
        penalty = window.inputs.numel() * self.w**2
        return WindowLoss(((self.w * window.inputs) ** 2).sum(), window.inputs.numel(), state, penalty)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_is_of_loss_and_penalty_and_the_loss_reported_is_not(reduction):
    inputs = torch.randn(LANES, 2 * K1, dtype=torch.float64)
    task, expected = Squares(), 0.7
    update, run = StepPerWindow(), Run(task, Truncation(K1), loss_reduction=reduction)
    optimizer = Descent(task, 0.01)
    for window in windows_of(inputs, inputs, K1):
        loss = (expected**2 * window.inputs**2).sum()
        updated = update(window, None, run, optimizer, Place())
        assert updated.loss.item() == pytest.approx(loss.item(), abs=1e-12)
        step = 2 * expected * ((window.inputs**2).sum() + window.inputs.numel())
        expected -= 0.01 * step.item() / (window.inputs.numel() if reduction == "mean" else 1)
        assert task.w.item() == pytest.approx(expected, abs=1e-12)


def test_there_are_two_reductions():
    unchecked = inspect.unwrap(Run.__init__)  # in the tests the type checker would be first
    with pytest.raises(InputError, match="loss_reduction='median': must be mean or sum"):
        unchecked(Run.__new__(Run), Squares(), Truncation(K1), loss_reduction="median")
