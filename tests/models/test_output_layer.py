"""The output layer and its loss in one are what they are one after the other."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_tbptt import GRU, Window
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.metrics import summed_nats
from lit_tbptt.models.output_layer import FEWEST_WORDS, linear_nats

LANES, STEPS, FEATURES, WORDS = 3, 5, 7, 131


def operands(dtype=torch.float64, bias=True):
    features = torch.randn(LANES, STEPS, FEATURES, dtype=dtype, requires_grad=True)
    head = nn.Linear(FEATURES, WORDS, bias, dtype=dtype)
    return features, head, torch.randint(WORDS, (LANES, STEPS))


def gradients(loss, features, head, **options):
    return torch.autograd.grad(0.3 * loss, [features, *head.parameters()], **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_the_two_steps(dtype, tolerance, masked, bias):
    features, head, targets = operands(dtype, bias)
    mask = torch.rand(LANES, STEPS) < 0.6 if masked else None
    expected, count = summed_nats(head(features), targets, mask)
    loss, joined_count = linear_nats(features, head, targets, mask)
    assert joined_count == count
    assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    expected_gradients = gradients(expected, features, head)
    for _ in range(2):  # the second time from the same buffer
        found = gradients(loss, features, head, retain_graph=True)
        assert_close(found, expected_gradients, rtol=tolerance, atol=tolerance)


def test_an_unlikely_target_costs_many_nats_and_no_infinity():
    head = nn.Linear(1, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1000.0, -1000.0]))
    features, targets = torch.ones(1, 3, 1, requires_grad=True), torch.tensor([[0, 1, 2]])
    loss, _ = linear_nats(features, head, targets)
    assert loss.item() == 3000
    loss.backward()
    assert head.bias.grad.tolist() == [-1, 2, -1]


@pytest.mark.parametrize("masked", [True, False])
def test_a_gradient_of_the_gradient(masked):
    features, head, targets = operands()
    mask = torch.rand(LANES, STEPS) < 0.6 if masked else None
    seconds = []
    for loss, _ in (linear_nats(features, head, targets, mask), summed_nats(head(features), targets, mask)):
        first = gradients(loss, features, head, create_graph=True)
        seconds.append(gradients(sum((gradient**2).sum() for gradient in first), features, head))
    assert_close(*seconds, rtol=0, atol=1e-10)


def test_what_is_frozen_has_no_gradient():
    features, head, targets = operands()
    head.requires_grad_(False)
    plain, _ = summed_nats(head(features), targets)
    (expected,) = torch.autograd.grad(plain, features)
    for create_graph in (True, False):
        loss, _ = linear_nats(features, head, targets)
        (found,) = torch.autograd.grad(loss, features, create_graph=create_graph)
        assert_close(found, expected, rtol=0, atol=1e-10)


def one_window():
    return Window(torch.randint(WORDS, (LANES, STEPS)), torch.randint(WORDS, (LANES, STEPS)))


def loss_of(model, window):
    torch.manual_seed(3)
    return model.window_loss(window, model.initial_state(LANES)).loss


def is_joined(loss):
    names, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        names.add(node.name())
        todo += [after for after, _ in node.next_functions if after is not None]
    return "_LinearNatsBackward" in names


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_language_model_uses_it_in_training(tie_weights):
    model = RecurrentLM(WORDS, GRU(6), 0.3, 0.2, tie_weights=tie_weights).double()
    window = one_window()
    joined = loss_of(model, window)
    assert is_joined(joined)
    handle = model.head.register_forward_hook(lambda *args: None)
    plain = loss_of(model, window)
    assert not is_joined(plain)
    parameters = list(model.parameters())
    assert_close(joined, plain, rtol=0, atol=1e-10)
    assert_close(torch.autograd.grad(joined, parameters), torch.autograd.grad(plain, parameters), rtol=0, atol=1e-10)
    handle.remove()
    assert is_joined(loss_of(model, window))
    with torch.no_grad():
        assert_close(loss_of(model, window), plain.detach(), rtol=0, atol=1e-10)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_joined(loss_of(model.float(), window))
    few = RecurrentLM(FEWEST_WORDS - 1, GRU(6))
    assert not is_joined(loss_of(few, Window(*torch.randint(FEWEST_WORDS - 1, (2, LANES, STEPS)))))


class Doubled:
    def outputs_loss(self, outputs, window):
        loss, count = super().outputs_loss(outputs, window)
        return 2 * loss, count


class MixedIn(Doubled, RecurrentLM):
    pass


class Inherited(MixedIn):
    def initial_state(self, num_lanes):
        return super().initial_state(num_lanes)


class OwnForward(RecurrentLM):
    def forward(self, tokens, state):
        logits, state = super().forward(tokens, state)
        return 2 * logits, state


@pytest.mark.parametrize("kind", [MixedIn, Inherited, OwnForward])
def test_a_half_that_a_subclass_changes_counts(kind):
    model, window = kind(WORDS, GRU(6)), one_window()
    logits, _ = model(window.inputs, model.initial_state(LANES))
    loss, _ = model.outputs_loss(logits, window)
    assert_close(loss_of(model, window), loss)
