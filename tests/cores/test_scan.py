"""The recurrence over time or over chunks of it, beside a loop that autograd records."""

import pytest
import torch
from torch.testing import assert_close

from lit_tbptt.cores.scan import scan

LANES, FEATURES = 3, 5


def loop(rates, terms, start):
    states = []
    for rate, term in zip(rates, terms, strict=True):
        start = (1 - rate) * start + term
        states.append(start)
    return torch.stack(states)


def sizes(num_time_steps):
    return num_time_steps, LANES, FEATURES


def given(num_time_steps):
    """Rates, terms and a start in float64: rates of 0 and 1 among them, positive, negative and zero starts."""
    rates = torch.rand(sizes(num_time_steps), dtype=torch.float64)
    rates[torch.rand_like(rates) < 0.1] = 0
    rates[torch.rand_like(rates) < 0.1] = 1
    start = torch.randn(LANES, FEATURES, dtype=torch.float64)
    start[1, 2] = 0
    return rates, torch.randn_like(rates), start


def run(form, *tensors, loss_weights=None):
    """The states, the last state and the gradients of all three arguments."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    states = form(*tensors)
    weights = torch.linspace(-1, 2, states.numel(), dtype=states.dtype) if loss_weights is None else loss_weights
    loss = (states * weights.view_as(states)).sum()
    return states, states[-1], *torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("logit", [-9.0, -6.0])
def test_a_loop_over_constant_rates_does_not_add_up_their_rounding(logit):
    """One minus a rate of 1e-4 is rounded by 3e-8, in every time step."""
    rates = (logit + torch.randn(1, LANES, FEATURES)).sigmoid().expand(sizes(1000))
    terms, start = rates * torch.randn(sizes(1)), torch.randn(LANES, FEATURES)
    assert_close(
        scan(rates, terms, start, 1).double(), loop(*map(torch.Tensor.double, (rates, terms, start))), rtol=0, atol=8e-6
    )


@pytest.mark.parametrize("num_chunks", [None, 1, 2, 3, 7, 200])
@pytest.mark.parametrize("num_time_steps", [1, 2, 7, 23, 131])
def test_every_form_equals_a_loop(num_time_steps, num_chunks):
    tensors = given(num_time_steps)
    found = run(lambda *each: scan(*each, num_chunks), *tensors)
    assert_close(found, run(loop, *tensors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_gradients_of_gradients_are_right(num_chunks):
    rates, terms, start = (tensor[..., :2, :2].requires_grad_() for tensor in given(7))
    assert torch.autograd.gradcheck(lambda *each: scan(*each, num_chunks), (rates, terms, start))
    assert torch.autograd.gradgradcheck(lambda *each: scan(*each, num_chunks), (rates, terms, start))


def test_a_third_derivative_is_that_of_the_loop():
    tensors = [tensor.requires_grad_() for tensor in given(5)]
    results = []
    for form in (loop, lambda *each: scan(*each, 2)):
        derivative = form(*tensors).cos().sum()
        for _ in range(3):
            slopes = torch.autograd.grad(derivative, tensors, create_graph=True)
            derivative = sum((slope**2).sum() for slope in slopes)
        results.append(derivative)
    assert_close(*results, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize(
    ("num_time_steps", "logit", "constant"),
    [
        *((4096, logit, True) for logit in (-60.0, -14.0, -9.0, -6.0, 0.0, 9.0)),
        *((4099, logit, False) for logit in (-9.0, 0.0, 60.0)),
    ],
)
def test_float32_stays_close_over_many_time_steps(num_time_steps, logit, constant):
    """Constant rates are the hardest: rounded in the same direction in every time step."""
    shape = (1, LANES, FEATURES) if constant else sizes(num_time_steps)
    rates = (logit + torch.randn(shape)).sigmoid().expand(sizes(num_time_steps))
    terms = rates * torch.randn(shape)
    tensors = rates, terms, torch.randn(LANES, FEATURES)
    # A loss of the last state and of some others, so that gradients are of the size of 1.
    weights = torch.zeros(sizes(num_time_steps))
    weights[99::1000], weights[-1] = 0.1, 1
    exact = run(loop, *(tensor.double() for tensor in tensors), loss_weights=weights.double())
    for found, expected in zip(run(scan, *tensors, loss_weights=weights), exact, strict=True):
        scale = max(1.0, expected.abs().max().item())
        assert_close(found.double() / scale, expected / scale, rtol=1e-5, atol=1e-5)


def test_many_small_time_steps_are_run_in_chunks_by_default():
    rates, terms, start = (tensor.float() for tensor in given(90))
    by_default = scan(rates, terms, start)
    assert torch.equal(by_default, scan(rates, terms, start, 9))
    assert not torch.equal(by_default, scan(rates, terms, start, 1))
    few = rates[:63], terms[:63], start
    assert torch.equal(scan(*few), scan(*few, 1))
    wide = [tensor.repeat(*[1] * (tensor.ndim - 1), 200) for tensor in (rates, terms, start)]
    assert torch.equal(scan(*wide), scan(*wide, 1))


def test_no_lane_and_no_gradient_of_the_rates_are_possible():
    rates, terms, start = given(70)
    assert scan(rates[:, :0], terms[:, :0], start[:0]).shape == (70, 0, FEATURES)
    terms.requires_grad_()
    (of_terms,) = torch.autograd.grad(scan(rates, terms, start).sum(), [terms])
    assert_close(of_terms, run(loop, rates, terms, start, loss_weights=torch.ones_like(terms))[3])


def smooth(form):
    return lambda *tensors: form(*tensors).sin().sum()


FORMS = pytest.mark.parametrize(
    "form", [lambda *each: scan(*each, 1), lambda *each: scan(*each, 3)], ids=["loop", "chunks"]
)


@FORMS
def test_functional_derivatives_are_those_of_the_loop(form):
    tensors, tangents = given(7), given(7)
    every = 0, 1, 2
    assert_close(torch.func.grad(smooth(form), every)(*tensors), torch.func.grad(smooth(loop), every)(*tensors))
    assert_close(torch.func.jvp(form, tensors, tangents), torch.func.jvp(loop, tensors, tangents))
    for number, tensor in enumerate(tensors):
        of_one = [
            torch.func.jacfwd(each, number)(*tensors[:number], tensor, *tensors[number + 1 :]) for each in (form, loop)
        ]
        assert_close(*of_one)
    products = [
        torch.func.jvp(torch.func.grad(smooth(each), every), tensors, tangents) for each in (form, loop)
    ]  # of the Hessian with a vector
    assert_close(*products, rtol=1e-11, atol=1e-11)


@FORMS
@pytest.mark.parametrize("axes", [(1, 0, 2), (None, 1, None), (0, None, 0)])
def test_mapping_over_an_axis_is_a_loop_over_it(form, axes):
    torch.manual_seed(1)
    tensors = [
        each if axis is None else torch.stack([each, each / 2, each / 3, each / 4], axis)
        for each, axis in zip(given(7), axes, strict=True)
    ]
    mapped = lambda each: torch.vmap(each, axes)(*tensors)  # noqa: E731
    assert_close(mapped(form), mapped(loop))
    assert_close(mapped(torch.func.grad(smooth(form), (0, 1, 2))), mapped(torch.func.grad(smooth(loop), (0, 1, 2))))
    assert_close(
        torch.func.grad(lambda each: torch.vmap(form, axes)(*tensors[:1], each, *tensors[2:]).sin().sum())(tensors[1]),
        torch.func.grad(lambda each: torch.vmap(loop, axes)(*tensors[:1], each, *tensors[2:]).sin().sum())(tensors[1]),
    )


def test_torch_compile_gets_a_form_that_it_can_trace(monkeypatch):
    """It refuses a function that has a derivative for forward mode."""
    tensors = [tensor.requires_grad_() for tensor in given(4)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced = scan(*tensors)
    assert traced.grad_fn._forward_cls.jvp is torch.autograd.Function.jvp
    assert_close(run(scan, *tensors), run(loop, *tensors))


def test_any_memory_order_is_read():
    rates, terms, start = given(70)
    expected = loop(rates, terms, start)
    moved = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (rates, terms)]
    assert_close(scan(*moved, start), expected)
    assert_close(scan(rates[:1].expand(70, -1, -1), terms, start), loop(rates[:1].expand(70, -1, -1), terms, start))
