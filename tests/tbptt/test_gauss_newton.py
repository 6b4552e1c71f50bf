"""Gauss-Newton products against the dense J^T H J, and against the gradients of the same truncation."""

import pytest
import torch
from tasks import windows_of
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from lit_tbptt import GRU, LSTM, RNN, Carry, InputError, MinGRU, Task, Truncation, Window
from lit_tbptt.tbptt.gauss_newton import Linearization, linearize

LANES, STEPS, FEATURES, HIDDEN, OUTPUTS = 3, 8, 2, 5, 4


class Predicting(Task, nn.Module):
    """A core and a linear layer; the loss is squared error, or cross-entropy where the targets are classes."""

    def __init__(self, core=RNN, **options):
        super().__init__()
        self.core = core(HIDDEN, input_size=FEATURES, **options)
        self.head = nn.Linear(HIDDEN, OUTPUTS)
        self.double()

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def predict_window(self, window, state):
        outputs, state = self.core(window.inputs, state)
        return {"scores": self.head(outputs), "classes": outputs.argmax(-1)}, state

    def outputs_loss(self, outputs, window):
        mask = window.mask_or_ones()
        if window.targets.is_floating_point():
            errors = (outputs["scores"] - window.targets).square().sum(-1)
        else:
            errors = cross_entropy(outputs["scores"].transpose(1, 2), window.targets, reduction="none")
        return (errors * mask).sum(), mask.sum(), outputs["scores"].square().sum()  # a penalty, which is left out


class Started(Predicting):
    """Its lanes start from a state computed from what belongs to their sequences."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.ones(HIDDEN, dtype=torch.float64))

    def initial_state_of(self, static):
        return {"hidden": (static[:, None] * self.start)[:, None]}


def data(kind, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(LANES, STEPS, FEATURES, generator=generator, dtype=torch.float64)
    if kind == "squared":
        return inputs.to(dtype), torch.randn(LANES, STEPS, OUTPUTS, generator=generator, dtype=torch.float64).to(dtype)
    return inputs.to(dtype), torch.randint(OUTPUTS, (LANES, STEPS), generator=generator)


def windows(kind, k1):
    cut = windows_of(*data(kind), k1, resets=[(1, 2), (2, 0)])
    mask = torch.ones(LANES, cut[-1].num_time_steps, dtype=torch.bool)
    mask[1, 1:] = False
    return [*cut[:-1], cut[-1]._replace(mask=mask)]


def cells(model, inputs, state, reset):
    """A tanh recurrence written out: the hidden states of a window, each from the one before."""
    rnn, hidden = model.core.rnn[0], torch.where(reset[:, None], 0.0, state)
    for x in inputs.unbind(1):
        hidden = torch.tanh(x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + hidden @ rnn.weight_hh_l0.T + rnn.bias_hh_l0)
        yield hidden


def dense(model, cut, kind, structural=0.0):
    """J^T H J of the mean loss, every Jacobian and Hessian by rows of plain backward passes."""
    matrix, targets, state = 0.0, 0, torch.zeros(LANES, HIDDEN, dtype=torch.float64)
    for window in cut:
        states = list(cells(model, window.inputs, state.detach(), window.reset_or_zeros()))
        state = states[-1]
        for time, hidden in enumerate(states):
            scores = model.head(hidden)
            for lane in range(LANES):
                if structural:
                    matrix = matrix + structural * square(rows(hidden[lane], model), torch.eye(HIDDEN).double())
                if not window.mask_or_ones()[lane, time]:
                    continue
                targets += 1
                share = scores[lane].softmax(0).detach()
                curvature = torch.diag(share) - torch.outer(share, share)
                if kind == "squared":
                    curvature = 2 * torch.eye(OUTPUTS).double()
                matrix = matrix + square(rows(scores[lane], model), curvature)
    return matrix / targets


def rows(values, model):
    grads = [
        torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True) for value in values
    ]
    return torch.stack([flat(z if g is None else g for g, z in zip(row, zeros(model), strict=True)) for row in grads])


def zeros(model):
    return [torch.zeros_like(parameter) for parameter in model.parameters()]


def square(jacobian, curvature):
    return jacobian.T @ curvature @ jacobian


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


def products(linearized, model, **options):
    """The matrix of the products, by its columns."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    units = torch.eye(sum(sizes), dtype=next(model.parameters()).dtype)
    shaped = (
        [part.view_as(p) for part, p in zip(unit.split(sizes), model.parameters(), strict=True)] for unit in units
    )
    return torch.stack([flat(linearized.product(vector, **options)) for vector in shaped], 1)


@pytest.mark.parametrize("kind", ["squared", "cross-entropy"])
@pytest.mark.parametrize("k1", [3, 8])
def test_the_products_are_those_of_the_dense_matrix(kind, k1):
    model, cut = Predicting(), windows(kind, k1)
    linearized = linearize(model, Truncation(k1), cut, None, model.parameters())
    assert_close(products(linearized, model), dense(model, cut, kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["squared", "cross-entropy"])
def test_hidden_states_add_their_own_matrix(kind):
    model, cut = Predicting(), windows(kind, 3)
    linearized = linearize(model, Truncation(3), cut, None, model.parameters(), hidden=True)
    assert_close(products(linearized, model, structural=0.3), dense(model, cut, kind, 0.3), rtol=0, atol=1e-12)
    assert_close(products(linearized, model), dense(model, cut, kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("core", "k2"), [(None, 4), (RNN, 3), (RNN, 5), (LSTM, 5), (GRU, 4), (MinGRU, 5)])
def test_the_curvature_of_squared_error_squares_the_gradients_of_the_truncation(core, k2):
    """With one target of which all derivatives are known, G = 2 J^T J, and J is what Truncation backpropagates."""
    torch.manual_seed(2)
    model, cut = Predicting(core, learned_initial_state=True) if core else Started(), windows("squared", 3)
    if not core:
        cut = [window._replace(static=torch.tensor([0.1, -0.4, 0.7]).double()) for window in cut]
    truncation, carry, matrix, total = Truncation(3, k2), None, 0.0, 0
    for window in cut:
        jacobian = []
        for place in window.mask_or_ones().nonzero().tolist():
            for output in range(OUTPUTS):
                chosen = torch.zeros_like(window.targets)
                chosen[*place, output] = 1
                loss = truncation(Chosen(model), window._replace(targets=chosen), carry).loss
                jacobian.append(flat(torch.autograd.grad(loss, list(model.parameters()))))
        carry = truncation(model, window, carry).carry.detach()
        matrix = matrix + square(torch.stack(jacobian), 2 * torch.eye(len(jacobian)).double())
        total += int(window.mask_or_ones().sum())
    linearized = linearize(model, truncation, cut, None, model.parameters())
    assert_close(products(linearized, model), matrix / total, rtol=0, atol=1e-12)


class Chosen(Task):
    """The loss is the sum of the outputs that the targets choose."""

    def __init__(self, task):
        self.task = task
        self.initial_state_of = task.initial_state_of

    def initial_state(self, num_lanes):
        return self.task.initial_state(num_lanes)

    def window_loss(self, window, state):
        outputs, state = self.task.predict_window(window, state)
        return (outputs["scores"] * window.targets).sum(), 1, state


@pytest.mark.parametrize("core", [RNN, LSTM, GRU, MinGRU])
def test_float32_has_second_derivatives_too(core):
    torch.manual_seed(4)
    model = Predicting(core)
    vector = [torch.randn_like(parameter) for parameter in model.parameters()]
    exact = flat(linearize(model, Truncation(8), windows("squared", 8), None, model.parameters()).product(vector))
    model.float()
    window = Window(*data("squared", torch.float32), mask=windows("squared", 8)[-1].mask)
    rounded = linearize(model, Truncation(8), [window], None, model.parameters()).product([v.float() for v in vector])
    assert_close(flat(rounded).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("core", [RNN, LSTM, GRU])
def test_a_gpu_has_second_derivatives_too(core):
    model, cut = Predicting(core), windows("squared", 3)
    vector = [torch.randn_like(parameter) for parameter in model.parameters()]
    exact = linearize(model, Truncation(3), cut, None, model.parameters()).product(vector)
    model.cuda()
    moved = [window.to("cuda") for window in cut]
    found = linearize(model, Truncation(3), moved, None, model.parameters()).product([v.cuda() for v in vector])
    assert_close(flat(found).cpu(), flat(exact), rtol=0, atol=1e-10)


def test_shared_masks_are_those_of_the_gradient():
    class Dropping(Predicting):
        noise = None

        def begin_window(self, num_lanes):
            return torch.bernoulli(torch.full((num_lanes, 1, FEATURES), 0.5, dtype=torch.float64))

        def predict_window(self, window, state):
            return super().predict_window(window._replace(inputs=window.inputs * self.noise), state)

    model, cut = Dropping(), windows("squared", 8)
    torch.manual_seed(6)
    linearized = linearize(model, Truncation(8), cut, None, model.parameters())
    torch.manual_seed(6)
    masked = [cut[0]._replace(inputs=cut[0].inputs * model.begin_window(LANES))]
    assert_close(products(linearized, model), dense(model, masked, "squared"), rtol=0, atol=1e-12)


def test_ranks_sum_their_products():
    model, (cut,) = Predicting(), windows("cross-entropy", 8)
    vector = [torch.randn_like(parameter) for parameter in model.parameters()]
    whole = linearize(model, Truncation(8), [cut], None, model.parameters()).product(vector)
    halves = [cut.map(lambda leaf, lanes=lanes: leaf[lanes]) for lanes in (slice(2), slice(2, None))]
    denominator, given = cut.mask_or_ones().sum(), []
    other = linearize(model, Truncation(8), halves[1:], None, model.parameters(), denominator).product(vector)

    def reduce(product):
        given.append(product.shape)
        return product + flat(other)

    first = linearize(model, Truncation(8), halves[:1], None, model.parameters(), denominator, sum_over_ranks=reduce)
    assert_close(first.product(vector), whole, rtol=0, atol=1e-12)
    assert given == [flat(vector).shape]


def test_what_does_not_depend_on_a_parameter_has_no_curvature():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    linearized = Linearization([used * 3, torch.ones(2)], lambda z: z[0].square().sum() + z[1].sum(), [used, unused], 2)
    assert [part.tolist() for part in linearized.product([torch.tensor([1.0, 2.0]), torch.ones(3)])] == [
        [9, 18],
        [0] * 3,
    ]
    linear = Linearization(used * 3, torch.sum, [used])
    assert linear.product([torch.ones(2)])[0].tolist() == [0, 0]


def test_what_a_window_forgets_is_forgotten():
    class Forgetful(Predicting):
        def enter_window(self, state):
            return tree_map(torch.zeros_like, state)

    model, cut = Forgetful(), windows("squared", 8)[0]._replace(reset=None)
    vector = [torch.randn_like(parameter) for parameter in model.parameters()]
    start = Carry(tree_map(torch.ones_like, model.initial_state(LANES)))
    products = [
        linearize(model, Truncation(8), [cut], carry, model.parameters()).product(vector) for carry in (start, None)
    ]
    assert_close(*products, rtol=0, atol=1e-12)


def test_frozen_parameters_stay_out_of_it():
    model, (cut,) = Predicting(), windows("squared", 8)
    trained = [parameter for name, parameter in model.named_parameters() if name != "head.bias"]
    vectors = [torch.randn_like(parameter) for parameter in trained]
    expected = linearize(model, Truncation(8), [cut], None, trained).product(vectors)
    model.head.bias.requires_grad_(False)
    everything = linearize(model, Truncation(8), [cut], None, [*trained, model.head.bias])
    *products, frozen = everything.product([*vectors, torch.ones(OUTPUTS, dtype=torch.float64)])
    assert_close(products, expected, rtol=0, atol=1e-12)
    assert not frozen.any()


def test_a_task_of_window_loss_alone_is_refused():
    class Whole(Task):
        def window_loss(self, window, state):
            raise AssertionError

    with pytest.raises(InputError, match="Whole must define predict_window: products with the curvature need"):
        linearize(Whole(), Truncation(8), windows("squared", 8), None, [])


def test_structural_damping_without_hidden_states_is_refused():
    model = Predicting()
    linearized = linearize(model, Truncation(8), windows("squared", 8), None, model.parameters())
    with pytest.raises(InputError, match=r"structural=0.5: .* no hidden states; build it with .*hidden=True"):
        linearized.product(zeros(model), 0.5)
