"""EchoState beside a dense recurrence written by hand."""

import pytest
import torch
from torch.testing import assert_close

from lit_tbptt import EchoState, InputError


def dense(core):
    """The recurrent matrix, of which the core keeps the entries that are not zero."""
    size = core.output_size
    return core.recurrent_weights.new_zeros(size, size).scatter(1, core.sources, core.recurrent_weights)


def by_hand(core, inputs, hidden, leak):
    outputs = []
    for x in inputs.unbind(1):
        driven = x @ core.input_weights.T + core.bias + hidden @ dense(core).T
        hidden = (1 - leak) * hidden + leak * driven.tanh()
        outputs.append(hidden)
    return torch.stack(outputs, 1), hidden


@pytest.mark.parametrize("leak", [0.3, 1.0])
def test_it_equals_a_dense_recurrence_and_so_do_its_gradients(leak):
    core = EchoState(41, 0.8, leak, num_connections=5, input_size=3).double()
    given = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 41, dtype=torch.float64)
    results = []
    for run in (lambda x, h: core(x, {"hidden": h}), lambda x, h: by_hand(core, x, h, leak)):
        inputs, hidden = (each.clone().requires_grad_() for each in given)
        outputs, after = run(inputs, hidden)
        (outputs[:, 2:] ** 3).sum().backward()
        after = after["hidden"] if isinstance(after, dict) else after
        results.append((outputs, after, inputs.grad, hidden.grad))
    assert_close(*results, rtol=1e-13, atol=1e-13)


def test_gradients_of_gradients_are_right():
    core = EchoState(11, num_connections=3, input_size=2).double()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: core(x, core.initial_state(2))[0], inputs)


@pytest.mark.parametrize(
    ("size", "connections", "radius"), [(1, 10, 0.5), (7, 10, 1.25), (90, 10, 0.95), (90, 90, 0.95)]
)
def test_the_spectral_radius_is_the_given_one(size, connections, radius):
    core = EchoState(size, radius, num_connections=connections).double()
    assert_close(torch.linalg.eigvals(dense(core)).abs().max().item(), radius, rtol=1e-6, atol=0.0)
    rows = core.sources.sort().values
    assert rows.shape == (size, min(connections, size))
    assert (rows.diff() > 0).all()  # no unit twice


def test_scales_bound_the_weights_and_the_seed_determines_them():
    core, same, other = (EchoState(50, 0.9, 1.0, 12.0, 0.2, seed=seed, input_size=16) for seed in (4, 4, 5))
    for weights, bound in ((core.input_weights, 3.0), (core.bias, 0.2)):
        assert 0.9 * bound < weights.abs().max() <= bound
        assert abs(weights.mean()) < 0.3 * bound
    assert_close(dict(core.state_dict()), dict(same.state_dict()), rtol=0, atol=0)
    torch.set_default_dtype(torch.float64)
    try:
        double = EchoState(50, 0.9, 1.0, 12.0, 0.2, seed=4, input_size=16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(dict(double.float().state_dict()), dict(core.state_dict()), rtol=0, atol=0)
    assert all((core.state_dict()[name] != value).any() for name, value in other.state_dict().items())


def test_nothing_is_a_parameter_and_everything_is_saved():
    core = EchoState(13, input_size=5)
    assert list(core.parameters()) == []
    other = EchoState(13, input_size=5, seed=2)
    other.load_state_dict(core.state_dict())
    inputs = torch.randn(2, 6, 5)
    assert_close(other(inputs, core.initial_state(2)), core(inputs, core.initial_state(2)), rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_it_runs_in_half_precision_forward_and_backward(autocast):
    core = EchoState(60, input_size=5)
    exact = core(inputs := torch.randn(2, 9, 5), core.initial_state(2))[0]
    inputs = inputs.requires_grad_()
    if not autocast:
        core, inputs = core.bfloat16(), inputs.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs, after = core(inputs, core.initial_state(2))
        outputs.sum().backward()
    assert after["hidden"].dtype == (torch.float32 if autocast else torch.bfloat16)
    assert_close(outputs.float(), exact, rtol=0, atol=0.05)
    assert inputs.grad.isfinite().all()


def test_it_forgets_its_start():
    core = EchoState(80, 0.7, input_size=2)
    inputs = torch.randn(1, 200, 2)
    _, zeros = core(inputs, core.initial_state(1))
    _, ones = core(inputs, {"hidden": torch.ones(1, 80)})
    assert_close(zeros, ones)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0: must be 1 or more"),
        ({"num_connections": 0}, "num_connections=0: must be 1 or more"),
        ({"input_size": -2}, "input_size=-2: must be 1 or more"),
        ({"spectral_radius": -0.1}, "spectral_radius=-0.1: must be 0 or more"),
        ({"input_scale": float("nan")}, "input_scale=nan: must be 0 or more"),
        ({"bias_scale": float("inf")}, "bias_scale=inf: must be 0 or more"),
        ({"leak": 0.0}, "leak=0.0: must be above 0 and at most 1"),
        ({"leak": 1.1}, "leak=1.1: must be above 0 and at most 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        EchoState(**{"hidden_size": 9} | arguments)
