"""Dropout whose masks are the same at every time step of a window and of its context."""

import inspect

import pytest
import torch
from tasks import Shaken, windows_of
from torch.testing import assert_close

from lit_tbptt import LSTM, InputError, RecurrentLM, Truncation

LANES, K1, WIDTH, HIDDEN, VOCABULARY = 3, 4, 5, 6, 11


def language_model(over_time="shared"):
    torch.manual_seed(4)
    core = LSTM(HIDDEN, 2, dropout=0.3, input_size=WIDTH)
    return RecurrentLM(
        VOCABULARY, core, embedding_dropout=0.4, output_dropout=0.3, dropout_over_time=over_time
    ).double()


def windows(count):
    ids = torch.randint(VOCABULARY, (LANES, count * K1 + 1), generator=torch.Generator().manual_seed(7))
    return windows_of(ids[:, :-1], ids[:, 1:], K1)


def masks(model, count, k2, recompute_every=None):
    """What the embedding's dropout does at each time step of each window's run: `[lane, time, feature]` by window."""
    model.embedding.weight.data.fill_(1.0)
    seen, found = [], []
    model.core.register_forward_pre_hook(lambda core, args: seen.append(args[0].detach()))
    truncation, carry = Truncation(K1, k2, recompute_every), None
    for window in windows(count):
        cost = truncation(model, window, carry)
        cost.loss.backward()
        carry = cost.carry.detach()
        found.append(torch.cat(seen, 1))
        seen.clear()
    return found


@pytest.mark.parametrize("recompute_every", [None, 2, 3])
def test_a_mask_holds_for_a_window_and_its_context_and_no_longer(recompute_every):
    found = masks(language_model(), 4, 10, recompute_every)
    times = 1 if recompute_every is None else 2
    assert [len(part[0]) for part in found] == [4 * times, 8 * times, 10 * times, 10 * times]
    for part in found:
        assert torch.equal(part, part[:, :1].expand_as(part))
        assert set(part.unique().tolist()) <= {0.0, 1 / 0.6}
    assert not torch.equal(found[2], found[3])
    free = masks(language_model("free"), 2, K1)[0]
    assert not torch.equal(free, free[:, :1].expand_as(free))


def gradients(recompute_every, in_order):
    """The gradients of two windows, the second begun before or after the first one's backward pass."""
    model, truncation = language_model(), Truncation(K1, 2 * K1, recompute_every)
    torch.manual_seed(9)
    first, second = windows(2)
    cost = truncation(model, first)
    if in_order:
        cost.loss.backward()
    other = truncation(model, second, cost.carry.detach())
    if not in_order:
        cost.loss.backward()
    other.loss.backward()
    return [cost.loss, other.loss, *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("in_order", [True, False])
def test_what_is_computed_again_sees_the_noise_of_its_own_window(in_order):
    assert_close(gradients(3, in_order), gradients(None, in_order), rtol=0, atol=1e-12)


def test_nothing_is_drawn_in_evaluation_or_where_dropout_is_free():
    free, shared = language_model("free"), language_model()
    before = torch.get_rng_state()
    free.begin_window(LANES)
    assert torch.equal(torch.get_rng_state(), before)
    before = torch.get_rng_state()
    shared.eval().begin_window(LANES)
    assert torch.equal(torch.get_rng_state(), before)
    shared.train().begin_window(LANES)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("recompute_every", [None, 3])
def test_a_core_finds_its_own_noise_whenever_its_window_is_run(recompute_every):
    model, truncation, carry = (
        RecurrentLM(VOCABULARY, Shaken(WIDTH)).double(),
        Truncation(K1, 10, recompute_every),
        None,
    )
    noises = []
    for window in windows(3):
        cost = truncation(model, window, carry)
        cost.loss.backward()
        carry = cost.carry.detach()
        assert len(model.core.seen) > bool(noises)  # context and window are run at once, cut at the far edge
        assert all(noise is model.core.seen[0] for noise in model.core.seen)
        noises.append(model.core.seen[0])
        model.core.seen.clear()
    assert not torch.equal(noises[0], noises[1])


def test_a_network_in_training_without_masks_says_what_to_do():
    model = language_model()
    with pytest.raises(InputError, match=r"begin_window\(num_lanes\).*call eval"):
        model(torch.zeros(LANES, 2, dtype=torch.long), model.initial_state(LANES))
    unchecked = inspect.unwrap(RecurrentLM.__init__)  # in the tests the type checker would be first
    with pytest.raises(InputError, match="dropout_over_time='locked': must be free or shared"):
        unchecked(model, VOCABULARY, LSTM(HIDDEN), dropout_over_time="locked")
