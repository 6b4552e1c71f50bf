"""Hessian-free steps against dense solutions, the damping's rule, the line search, and exact continuation."""

import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_tbptt import HessianFree, InputError
from lit_tbptt.optim.conjugate_gradients import conjugate_gradients
from lit_tbptt.tbptt.gauss_newton import Linearization

SEQUENCES, STEPS, FEATURES, UNITS, CLASSES = 7, 6, 3, 4, 5


class Classifier(nn.Module):
    """A tanh RNN that classifies sequences."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.rnn = nn.RNN(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, CLASSES)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.to(dtype)
        self.inputs = torch.randn(SEQUENCES, STEPS, FEATURES, generator=generator).to(dtype)
        self.targets = torch.randint(CLASSES, (SEQUENCES,), generator=generator)

    def loss(self):
        return cross_entropy(self.head(self.rnn(self.inputs)[0][:, -1]), self.targets)

    def linearize(self):
        hidden = self.rnn(self.inputs)[0]
        scores = self.head(hidden[:, -1])
        return Linearization(scores, lambda z: cross_entropy(z, self.targets), self.parameters(), hidden=hidden)

    def matrix(self, structural):
        linearized = self.linearize()
        units = torch.eye(sum(parameter.numel() for parameter in self.parameters())).double()
        return torch.stack([flat(linearized.product(self.split(unit), structural)) for unit in units])

    def gradient(self):
        return flat(torch.autograd.grad(self.loss(), list(self.parameters())))

    def split(self, vector):
        parts = vector.split([parameter.numel() for parameter in self.parameters()])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters(), strict=True)]

    def optimizer(self, **options):
        optimizer = HessianFree(self.parameters(), **options)
        optimizer.linearize, optimizer.loss_only = self.linearize, self.loss
        return optimizer


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


@pytest.mark.parametrize("structural", [0.0, 0.3])
def test_a_step_solves_the_damped_system(structural):
    model, damping = Classifier(), 0.2
    start, gradient, loss = flat(model.parameters()), model.gradient(), model.loss()
    damped = model.matrix(damping * structural) + damping * torch.eye(len(start)).double()
    solution = -torch.linalg.solve(damped, gradient)
    promised = gradient @ solution + solution @ model.matrix(0.0) @ solution / 2
    optimizer = model.optimizer(damping=damping, max_iterations=400, structural_damping=structural)
    assert_close(optimizer.step(closure_of(optimizer, model.loss)), loss.detach(), rtol=0, atol=0)
    # The stopping rule leaves a part of the way, less than it allows: ten times 5e-4 of the quadratic.
    assert_close(flat(model.parameters()) - start, solution, rtol=0, atol=0.02)
    assert optimizer.state["reduction_ratio"] == pytest.approx(((model.loss() - loss) / promised).item(), rel=0.02)


def test_one_step_reaches_the_minimum_of_a_quadratic():
    inputs, targets = torch.randn(11, 6, dtype=torch.float64), torch.randn(11, 1, dtype=torch.float64)
    weights = torch.zeros(6, 1, dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([weights], damping=1e-12)

    def loss():
        return (inputs @ weights - targets).square().mean()

    optimizer.linearize = lambda: Linearization(inputs @ weights, lambda z: (z - targets).square().mean(), [weights])
    optimizer.step(closure_of(optimizer, loss))
    assert_close(weights.detach(), torch.linalg.lstsq(inputs, targets).solution, rtol=0, atol=1e-9)
    assert optimizer.state["reduction_ratio"] == pytest.approx(1)
    assert optimizer.param_groups[0]["damping"] == 1e-12 * 2 / 3


class Claimed:
    """A curvature of 1, whatever the loss."""

    def product(self, vector):
        return vector


def claimed(curvature, start=2.0, **options):
    """An optimizer that takes the curvature of `curvature * w^2 / 2` for 1, so that the ratio is 2 - curvature."""
    w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], **{"damping": 1e-9} | options)
    optimizer.linearize = Claimed
    return w, optimizer, closure_of(optimizer, lambda: (curvature * w.square() / 2).sum())


@pytest.mark.parametrize(
    ("curvature", "ratio", "factor", "size"),
    [
        (0.5, 1.5, 2 / 3, 1),
        (1.2, 0.8, 2 / 3, 1),
        (1.3, 0.7, 1, 1),
        (1.7, 0.3, 1, 1),
        (1.8, 0.2, 3 / 2, 1),
        (2.4, -0.4, 3 / 2, 0.8),
        (3.0, -1.0, 3 / 2, 0.8**2),
    ],
)
def test_the_damping_follows_the_reduction_ratio(curvature, ratio, factor, size):
    w, optimizer, closure = claimed(curvature)
    optimizer.step(closure)
    assert optimizer.state["reduction_ratio"] == pytest.approx(ratio)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(1e-9 * factor)
    assert optimizer.state["step_size"] == pytest.approx(size)
    assert w.item() == pytest.approx(2 - size * curvature * 2)
    assert optimizer.state[w]["start"].item() == pytest.approx(-curvature * 2)  # as long as it was


def test_a_larger_damping_shortens_the_step():
    w, optimizer, closure = claimed(1.0, damping=3.0)
    optimizer.step(closure)
    assert w.item() == 2 - 2 / (1 + 3)


def test_the_learning_rate_is_the_first_step_size():
    w, optimizer, closure = claimed(1.0, lr=0.25)
    optimizer.step(closure)
    assert w.item() == pytest.approx(2 - 0.25 * 2)


def test_the_next_step_starts_from_the_last_solution():
    """In one iteration from x the residual r gives x - r (r^T r) / (r^T A r): here to the exact solution or not."""
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    matrix = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    optimizer = HessianFree([w], damping=0.5, max_iterations=1, start_decay=0.9)
    optimizer.linearize = lambda: Linearization(w, lambda z: z @ matrix @ z / 2, [w])
    expected, x, damping = w.detach().clone(), torch.zeros(2).double(), 0.5
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: w @ matrix @ w / 2))
        damped, gradient = matrix + damping * torch.eye(2).double(), matrix @ expected
        x = 0.9 * x
        x = x if x @ damped @ x / 2 + gradient @ x < 0 else 0 * x
        residual = damped @ x + gradient
        x = x - residual * (residual @ residual) / (residual @ damped @ residual)
        expected, damping = expected + x, optimizer.param_groups[0]["damping"]
        assert_close(w.detach(), expected, rtol=0, atol=1e-12)
        assert_close(optimizer.state[w]["start"], x, rtol=0, atol=1e-12)


def test_the_weights_stay_where_no_step_lowers_the_loss():
    w, optimizer, _ = claimed(1.0, start=1 / 3)

    def closure():
        w.grad = -w.detach()  # of the wrong sign
        return (w.square() / 2).sum()

    optimizer.step(closure)
    assert w.item() == 1 / 3
    assert optimizer.state["step_size"] == 0
    assert optimizer.param_groups[0]["damping"] == pytest.approx(1.5e-9)


def test_a_curvature_that_is_not_positive_is_damped_more():
    w = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], damping=0.5)
    optimizer.linearize = lambda: Linearization(w, lambda z: -z.square().sum() / 2, [w])  # -1 + damping
    for damping in (0.75, 1.125):
        optimizer.step(closure_of(optimizer, lambda: w.square().sum() / 2))
        assert w.item() == 3
        assert optimizer.param_groups[0]["damping"] == damping
    optimizer.step(closure_of(optimizer, lambda: w.square().sum() / 2))
    assert w.item() != 3


def test_a_step_to_where_the_loss_is_no_number_is_shortened():
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], damping=1e-9)
    optimizer.linearize = Claimed
    optimizer.step(closure_of(optimizer, lambda: (3 * w - w.log()).sum()))  # the minimum is at 1/3, the step is to -1
    assert optimizer.state["step_size"] == pytest.approx(0.8**4)
    assert w.item() == pytest.approx(1 - 2 * 0.8**4)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(1.5e-9)


def test_earlier_iterates_are_taken_where_the_loss_is_less():
    """The curvature of one weight is claimed to be a tenth of what it is: the last iterate goes too far there."""
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    true, said = torch.tensor([1.0, 1.0]).double(), torch.tensor([1.0, 0.1]).double()
    optimizer = HessianFree([w], damping=1e-9)
    optimizer.linearize = lambda: Linearization(w, lambda z: (said * z.square()).sum() / 2, [w])
    optimizer.step(closure_of(optimizer, lambda: (true * w.square()).sum() / 2))
    first = 1 - 2 / 1.1  # of the steepest descent
    assert_close(w.detach(), torch.full((2,), first).double(), rtol=0, atol=1e-8)
    assert_close(optimizer.state[w]["start"], -1 / said, rtol=0, atol=1e-7)  # the last iterate


@pytest.mark.parametrize(("no_number", "taken"), [({3}, 3), ({2}, 2), ({2, 3}, 1)])
def test_an_iterate_where_the_loss_is_no_number_is_not_taken(no_number, taken):
    """Call 1 is at the start, the next ones are at the iterates 3, 2 and 1; their losses fall from 1 to 3."""
    w, curvature = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.tensor([1.0, 0.1, 0.01]).double()
    optimizer, calls = HessianFree([w], damping=1e-9), []
    optimizer.linearize = lambda: Linearization(w, lambda z: (curvature * z.square()).sum() / 2, [w])

    def loss():
        calls.append(w)
        return (curvature * w.square()).sum() / 2 * (math.nan if len(calls) in no_number else 1)

    optimizer.step(closure_of(optimizer, loss))
    start = torch.zeros(3, dtype=torch.float64)
    iterates = conjugate_gradients(lambda x: (curvature + 1e-9) * x, curvature, start, 3)
    assert_close(w.detach(), 1 + iterates[taken - 1].solution, rtol=0, atol=1e-7)


def test_without_loss_only_the_closure_is_run_and_gives_the_same():
    found = []
    for cheaper in (True, False):
        model = Classifier()
        optimizer = model.optimizer(damping=0.1)
        if not cheaper:
            optimizer.loss_only = None
        for _ in range(3):
            optimizer.step(closure_of(optimizer, model.loss))
        found.append((flat(model.parameters()), optimizer.state))
    (weights, state), (same, other) = found
    assert torch.equal(weights, same)
    assert state["num_gradients"] == state["num_linearizations"] == other["num_linearizations"] == 3
    assert other["num_gradients"] == 3 + state["num_losses"]
    assert "num_losses" not in other
    assert state["num_products"] == other["num_products"] > 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_optimizer_continues_to_the_same_bits(dtype):
    model = Classifier(dtype)
    optimizer = model.optimizer(damping=0.1)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, model.loss))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, saved = torch.load(file, weights_only=True)
    again = Classifier(dtype)
    again.load_state_dict(weights)
    continued = again.optimizer()
    continued.load_state_dict(saved)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, model.loss))
        continued.step(closure_of(continued, again.loss))
    assert torch.equal(flat(model.parameters()), flat(again.parameters()))
    assert optimizer.param_groups[0]["damping"] == continued.param_groups[0]["damping"] != 0.1
    for name in ("num_products", "num_losses", "reduction_ratio", "step_size"):
        assert optimizer.state[name] == continued.state[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"lr=0.0: must be above 0"),
        ({"damping": -1.0}, r"damping=-1.0: must be above 0"),
        ({"damping": math.nan}, r"damping=nan: must be above 0"),
        ({"max_iterations": 0}, r"max_iterations=0: must be 1 or more"),
        ({"start_decay": 1.1}, r"start_decay=1.1: must be from 0 to 1"),
        ({"structural_damping": -0.1}, r"structural_damping=-0.1: must be 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        HessianFree([torch.zeros(1, requires_grad=True)], **options)


def test_what_a_step_needs_is_named():
    w, optimizer, closure = claimed(1.0)
    with pytest.raises(InputError, match=r"closure=None: HessianFree runs a mini-batch several times"):
        optimizer.step()
    optimizer.linearize = None
    with pytest.raises(InputError, match=r"linearize=None: .* predict_window and outputs_loss"):
        optimizer.step(closure)
    assert w.item() == 2
    groups = [{"params": [torch.zeros(1, requires_grad=True)]}, {"params": [torch.zeros(2, requires_grad=True)]}]
    with pytest.raises(InputError, match=r"params: 2 groups"):
        HessianFree(groups)
