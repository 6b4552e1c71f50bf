"""MinGRU and MinLSTM beside the equations of the paper, written out one time step at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import logsigmoid, softplus
from torch.testing import assert_close

from lit_tbptt import InputError, MinGRU, MinLSTM

LANES, STEPS, FEATURES = 3, 70, 4
CORES = pytest.mark.parametrize("core_class", [MinGRU, MinLSTM])


def one_layer(core, layer, inputs, hidden):
    """A layer as the paper has it, without logarithms."""
    candidate, *gates = core.gates[layer](inputs).split(core.hidden_size, -1)
    candidate = torch.where(candidate > 0, candidate + 0.5, candidate.sigmoid())
    if isinstance(core, MinGRU):
        keep, add = 1 - gates[0].sigmoid(), gates[0].sigmoid()
    else:
        add, keep = (gate.sigmoid() for gate in gates)
        keep, add = keep / (keep + add), add / (keep + add)
    states = []
    for factor, share, new in zip(*(each.unbind(1) for each in (keep, add, candidate)), strict=True):
        hidden = factor * hidden + share * new
        states.append(hidden)
    return core.projections[layer](torch.stack(states, 1)), hidden


def by_hand(core, inputs, hidden):
    after = []
    for layer, state in enumerate(hidden.unbind(1)):
        inputs, state = one_layer(core, layer, inputs, state)
        after.append(state)
    return inputs, torch.stack(after, 1)


def with_gradients(core, form, inputs, hidden):
    inputs, hidden = inputs.clone().requires_grad_(), hidden.clone().requires_grad_()
    outputs, after = form(inputs, hidden)
    loss = (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum()
    loss = loss + (after**3).sum()
    return outputs, after, torch.autograd.grad(loss, [inputs, hidden, *core.parameters()])


def runner(core):
    def form(inputs, hidden):
        outputs, state = core(inputs, {"hidden": hidden})
        return outputs, state["hidden"]

    return form


@CORES
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_layers": 3, "output_size": 6}])
@pytest.mark.parametrize("num_time_steps", [1, STEPS])
def test_it_equals_the_equations(core_class, options, num_time_steps):
    core = core_class(5, input_size=FEATURES, **options).double()
    inputs = torch.randn(LANES, num_time_steps, FEATURES, dtype=torch.float64)
    hidden = torch.randn(LANES, options.get("num_layers", 1), 5, dtype=torch.float64)  # negative ones, too
    hidden[1, 0, 2] = 0
    found = with_gradients(core, runner(core), inputs, hidden)
    expected = with_gradients(core, lambda *each: by_hand(core, *each), inputs, hidden)
    assert_close(found, expected, rtol=1e-11, atol=1e-11)


@CORES
def test_it_equals_the_published_form_in_logarithms(core_class):
    """Appendix B of the paper, for a state that is positive."""
    core = core_class(5, input_size=FEATURES).double()
    inputs = torch.randn(LANES, STEPS, FEATURES, dtype=torch.float64)
    hidden = torch.rand(LANES, 5, dtype=torch.float64) + 0.1
    candidate, *gates = core.gates[0](inputs).split(5, -1)
    log_candidate = torch.where(candidate >= 0, (candidate.relu() + 0.5).log(), logsigmoid(candidate))
    if core_class is MinGRU:
        log_keep, log_add = -softplus(gates[0]), -softplus(-gates[0])
    else:
        difference = softplus(-gates[1]) - softplus(-gates[0])
        log_keep, log_add = -softplus(difference), -softplus(-difference)
    log_kept = log_keep.cumsum(1)
    log_terms = torch.cat([hidden.log()[:, None], log_add + log_candidate - log_kept], 1)
    expected = (log_kept + log_terms.logcumsumexp(1)[:, 1:]).exp()
    assert_close(core(inputs, {"hidden": hidden[:, None]})[0], expected, rtol=1e-10, atol=0.0)


@CORES
def test_gradients_of_gradients_are_right(core_class):
    core = core_class(3, input_size=2).double()
    inputs, hidden = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 1, 3, dtype=torch.float64)
    weights = tuple(weight.detach().clone().requires_grad_() for weight in core.parameters())
    names = [name for name, _ in core.named_parameters()]

    def call(inputs, hidden, *weights):
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(core, named, (inputs, {"hidden": hidden}))[0]

    assert torch.autograd.gradgradcheck(call, (inputs.requires_grad_(), hidden.requires_grad_(), *weights))


def with_given_gates(core_class):
    """A core whose inputs are its candidates and gates."""
    gates = 2 if core_class is MinGRU else 3
    core = core_class(2, input_size=2 * gates)
    nn.init.eye_(core.gates[0].weight)
    nn.init.zeros_(core.gates[0].bias)
    return core


@CORES
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_saturated_gates_give_finite_gradients_close_to_those_of_float64(core_class, data):
    core = with_given_gates(core_class)
    size = core.input_size
    logits = st.floats(-60, 60, width=32) | st.sampled_from([-200.0, -60.0, 0.0, 60.0, 200.0])
    drawn = data.draw(st.lists(st.lists(logits, min_size=size, max_size=size), min_size=1, max_size=9))
    repeats = data.draw(st.sampled_from([1, 5, 31]))
    state = data.draw(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=2))
    inputs, hidden = torch.tensor([drawn * repeats]), torch.tensor([[state]])
    found = with_gradients(core, runner(core), inputs, hidden)
    assert all(each.isfinite().all() for each in (*found[:2], *found[2]))
    core = core.double()
    exact = with_gradients(core, lambda *each: by_hand(core, *each), inputs.double(), hidden.double())
    values = max(1.0, inputs.abs().max().item(), hidden.abs().max().item())
    for each, expected in zip(found[:2], exact[:2], strict=True):
        assert_close(each.double(), expected, rtol=1e-5, atol=1e-6 * values)
    # A gate of almost 1 is rounded as 1 is, so the derivative of a closed gate has the error of that of an open one.
    open_gate = (2 + 3 * exact[1].abs().max().item() ** 2) * 2 * values * values
    for each, expected in zip(found[2], exact[2], strict=True):
        assert_close(each.double(), expected, rtol=1e-5, atol=3e-7 * open_gate)


@CORES
@pytest.mark.parametrize("bias", [-9.0, 0.0, 9.0])
def test_float32_stays_close_to_float64_over_many_time_steps(core_class, bias):
    core = core_class(5, input_size=FEATURES)
    with torch.no_grad():
        core.gates[0].bias[5:10] += bias  # of the gate that adds
    inputs, hidden = torch.randn(LANES, 4096, FEATURES), torch.randn(LANES, 1, 5)
    outputs, state = core(inputs, {"hidden": hidden})
    exact, exact_state = core.double()(inputs.double(), {"hidden": hidden.double()})
    assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-5)
    assert_close(state["hidden"].double(), exact_state["hidden"], rtol=1e-5, atol=1e-5)


@CORES
@pytest.mark.parametrize("autocast", [False, True])
def test_the_recurrence_is_in_float32_if_matrix_products_are_not(core_class, autocast):
    """With a small constant gate, bfloat16 states would stop at the first one that is 256 times as large as a term."""
    core = core_class(5, input_size=FEATURES)
    with torch.no_grad():
        core.gates[0].bias[5:10] -= 7
    core = core if autocast else core.bfloat16()
    inputs = torch.ones(1, 900, FEATURES, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs, _ = core(inputs, core.initial_state(1))
        rounded = core.gates[0](inputs)
    assert outputs.dtype == torch.bfloat16
    core = core.float()
    core.gates[0] = nn.Identity()
    expected, _ = by_hand(core, rounded.float(), torch.zeros(1, 1, 5))
    assert_close(outputs, expected.bfloat16(), rtol=0.01, atol=0.0)


@CORES
@pytest.mark.parametrize("learned_initial_state", [False, True])
def test_small_updates_of_weights_in_bfloat16_are_carried_from_token_to_token(core_class, learned_initial_state):
    core = core_class(5, learned_initial_state=learned_initial_state, input_size=FEATURES).bfloat16()
    with torch.no_grad():
        core.gates[0].bias[5:10] -= 7
    inputs, state = torch.ones(2, 900, FEATURES, dtype=torch.bfloat16), core.initial_state(2)
    _, whole = core(inputs, state)
    for token in inputs.split(1, 1):
        _, state = core(token, state)
    assert state["hidden"].dtype == torch.float32
    assert_close(state, whole, rtol=1e-4, atol=0.0)


@CORES
def test_functional_transforms_give_the_derivatives_of_autograd(core_class):
    core = core_class(3, 2, input_size=2).double()
    inputs, state = torch.randn(4, LANES, 9, 2, dtype=torch.float64), core.initial_state(LANES)
    weights = {name: weight.detach() for name, weight in core.named_parameters()}

    def loss(weights, inputs):
        return torch.func.functional_call(core, weights, (inputs, state))[0].sin().sum()

    by_autograd = [
        torch.autograd.grad(loss(dict(core.named_parameters()), each), [*core.parameters()]) for each in inputs
    ]
    functional = [torch.func.grad(loss)(weights, each) for each in inputs]
    assert_close([tuple(each.values()) for each in functional], by_autograd)
    mapped = torch.vmap(torch.func.grad(loss), (None, 0))(weights, inputs)
    assert_close(tuple(mapped.values()), tuple(map(torch.stack, zip(*by_autograd, strict=True))))
    direction = {name: torch.randn_like(weight) for name, weight in weights.items()}
    _, slope = torch.func.jvp(lambda each: loss(each, inputs[0]), (weights,), (direction,))
    expected = sum((each * direction[name]).sum() for name, each in functional[0].items())
    assert_close(slope, expected)


@CORES
def test_the_state_at_the_far_edge_takes_no_second_matrix_product(core_class):
    core, called = core_class(5, 2, input_size=FEATURES), []
    for gates in core.gates:
        gates.register_forward_hook(lambda *args: called.append(1))
    core.forward_through(torch.randn(LANES, 11, FEATURES), core.initial_state(LANES), 4)
    assert len(called) == 2


def test_the_forward_of_a_subclass_is_run_at_the_far_edge():
    class Doubled(MinGRU):
        def forward(self, inputs, state):
            outputs, state = super().forward(inputs, state)
            return 2 * outputs, state

    core, inputs = Doubled(5, input_size=FEATURES).double(), torch.randn(LANES, 11, FEATURES, dtype=torch.float64)
    outputs, _, _ = core.forward_through(inputs, core.initial_state(LANES), 4)
    assert_close(outputs, core(inputs, core.initial_state(LANES))[0])


@CORES
def test_a_learned_initial_state_receives_gradient(core_class):
    core = core_class(5, 2, learned_initial_state=True, input_size=FEATURES)
    core(torch.randn(LANES, 9, FEATURES), core.initial_state(LANES))[0].sum().backward()
    assert core.initial.grad.abs().min() > 0
    assert core_class(5).initial is None


@CORES
def test_features_are_dropped_between_layers_in_training(core_class):
    core = core_class(5, 2, 0.4, input_size=FEATURES)
    run = lambda: core(torch.ones(LANES, 9, FEATURES), core.initial_state(LANES))  # noqa: E731
    (first, _), (second, _) = run(), run()
    assert not torch.equal(first, second)
    core.eval()
    assert torch.equal(run()[0], run()[0])


@CORES
@pytest.mark.parametrize(
    "arguments",
    [{"hidden_size": 0}, {"num_layers": 0}, {"dropout": 1.0}, {"input_size": -1}, {"output_size": 0}],
)
def test_bad_sizes_are_refused(core_class, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"{name}={value}: must be"):
        core_class(**arguments)
