"""`recompute_every` changes what is kept in memory, and nothing else."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, RNN, InputError, RecurrentLM, Truncation, Window
from lit_tbptt.random_state import random_state

LANES, STEPS, VOCABULARY, WIDTH, HIDDEN = 3, 23, 11, 7, 5

CORES = {
    "rnn": lambda: RNN(HIDDEN, input_size=WIDTH),
    "lstm": lambda: LSTM(HIDDEN, 3, dropout=0.3, learned_initial_state=True, input_size=WIDTH),
    "gru": lambda: GRU(HIDDEN, 2, dropout=0.4, input_size=WIDTH),
}


class Counted(RecurrentLM):
    def __init__(self, core):
        super().__init__(VOCABULARY, core, embedding_dropout=0.3, output_dropout=0.25)
        self.calls = 0
        self.double()

    def window_loss(self, window, state):
        self.calls += 1
        return super().window_loss(window, state)


def train(task, k1, k2, every, resets=()):
    """Returns losses, gradients, the carry and the random numbers of some windows with SGD steps between them."""
    ids = torch.randint(VOCABULARY, (LANES, STEPS + 1), generator=torch.Generator().manual_seed(3))
    mask = torch.rand(LANES, STEPS, generator=torch.Generator().manual_seed(4)) < 0.8
    torch.manual_seed(5)
    truncation, carry, found = Truncation(k1, k2, every), None, []
    for start in range(0, STEPS, k1):
        some, later = slice(start, start + k1), slice(start + 1, start + k1 + 1)
        reset = torch.tensor([False, True, False]) if start in resets else None
        window = Window(ids[:, :-1][:, some], ids[:, later], reset, mask[:, some])
        loss, num_targets, carry, _ = truncation(task, window, carry)
        carry = carry.detach()
        task.zero_grad()
        loss.backward()
        found += [loss.detach(), torch.as_tensor(num_targets)]
        found += [weight.grad.clone() for weight in task.parameters() if weight.grad is not None]
        with torch.no_grad():
            for weight in task.parameters():
                if weight.grad is not None:
                    weight -= 0.01 * weight.grad
    return [*found, *carry.state.values(), torch.get_rng_state()]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("every", [2, 3, 5, 99])
@pytest.mark.parametrize(("k1", "k2", "resets"), [(5, 5, ()), (4, 13, ()), (6, 40, (12,)), (STEPS, STEPS, ())])
def test_losses_gradients_and_random_numbers_are_the_same(core, every, k1, k2, resets):
    torch.manual_seed(2)
    plain = Counted(CORES[core]())
    torch.manual_seed(2)
    recomputed = Counted(CORES[core]())
    expected = train(plain, k1, k2, None, resets)
    assert_close(train(recomputed, k1, k2, every, resets), expected, rtol=0, atol=1e-12)
    assert recomputed.calls >= 2 * plain.calls


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("every", [2, 5, 99])
@pytest.mark.parametrize(("k1", "k2", "resets"), [(5, 5, ()), (4, 13, ()), (1, 6, (12,)), (6, 40, (12,))])
def test_likewise_where_context_and_window_are_run_at_once(core, every, k1, k2, resets):
    models = []
    for _ in range(2):
        torch.manual_seed(2)
        models.append(RecurrentLM(VOCABULARY, CORES[core](), embedding_dropout=0.3, output_dropout=0.25).double())
    plain, recomputed = models
    expected = train(plain, k1, k2, None, resets)
    assert_close(train(recomputed, k1, k2, every, resets), expected, rtol=0, atol=1e-12)


def test_what_a_task_draws_itself_is_drawn_again():
    class Noisy(Counted):
        def window_loss(self, window, state):
            self.drawn.append((torch.rand(()).item(), random.random(), np.random.random()))  # noqa: NPY002 - as users do
            loss, num_targets, state, _ = super().window_loss(window, state)
            return loss * sum(self.drawn[-1]), num_targets, state

    task = Noisy(CORES["gru"]())
    task.drawn = []
    window = Window(*torch.randint(VOCABULARY, (2, LANES, STEPS)))
    loss = Truncation(STEPS, recompute_every=9)(task, window).loss
    before = random_state()
    loss.backward()
    forward, backward = task.drawn[:3], task.drawn[3:]
    assert len(set(forward)) == 3
    assert backward == forward[::-1]
    assert str(random_state()) == str(before)


def test_few_activations_are_kept():
    """The peak of what the forward pass leaves for the backward pass, counted by its tensors."""
    kept = {}
    for every in (None, 10):
        size = 0

        def count(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        task = Counted(RNN(HIDDEN, input_size=WIDTH))
        window = Window(*torch.randint(VOCABULARY, (2, LANES, 400)))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            Truncation(400, recompute_every=every)(task, window)
        kept[every] = size
    assert kept[10] < kept[None] / 50


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="recompute_every=1: must be 2 or more"):
        Truncation(5, recompute_every=1)


def locked(x):
    return x * nn.functional.dropout(torch.ones(LANES, 1, WIDTH).double(), 0.5)


def step_by_step(x):
    return torch.cat([nn.functional.dropout(step, 0.5) for step in x.split(1, 1)], 1)


def other_axis(x):
    return nn.functional.dropout(x.transpose(1, 2), 0.5).transpose(1, 2)


def in_place(x):
    return nn.functional.dropout(x * 1, 0.5, inplace=True)


def in_place_elsewhere(x):
    x = x * 1
    nn.functional.dropout(x, 0.5, inplace=True)
    return x


@pytest.mark.parametrize("draw", [locked, step_by_step, other_axis, in_place, in_place_elsewhere])
@pytest.mark.parametrize("every", [2, 3, WIDTH, 11, 22])
def test_the_gradient_is_that_of_the_loss_whatever_is_dropped(draw, every):
    """Against a finite difference: masks that differ between the two passes would be seen."""

    class Odd(Counted):
        def run_core(self, tokens, state):
            embedded = nn.functional.dropout(draw(self.embedding(tokens)), self.embedding_dropout)
            return self.core(embedded, state)

    task = Odd(CORES["gru"]())
    window = Window(*torch.randint(VOCABULARY, (2, LANES, STEPS)))

    def loss():
        torch.manual_seed(5)
        return Truncation(STEPS, recompute_every=every)(task, window).loss

    loss().backward()
    direction = {weight: torch.randn_like(weight) for weight in task.parameters()}
    slope = sum((weight.grad * step).sum() for weight, step in direction.items()).item()
    ends = []
    for size in (1e-5, -1e-5):
        with torch.no_grad():
            for weight, step in direction.items():
                weight += size * step
            ends.append(loss().item())
            for weight, step in direction.items():
                weight -= size * step
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)
