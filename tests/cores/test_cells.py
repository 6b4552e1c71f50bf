"""Cores that are written one time step at a time, each compared with its formula, gate by gate."""

import inspect

import pytest
import torch
from torch import sigmoid, tanh
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from lit_tbptt import SRU, Cell, CoupledLSTM, InputError, LayerNormLSTM

LANES, STEPS, FEATURES, UNITS = 3, 11, 7, 5


def normalized(x, gain=1.0, bias=0.0):
    centered = x - x.mean(-1, keepdim=True)
    return gain * centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() + bias


def layer_norm_lstm(core, inputs, state):
    """Ba et al. 2016, equations 20 to 22."""
    h, c, outputs = state["hidden"], state["cell"], []
    for x in inputs.unbind(1):
        recurrent = normalized(h @ core.recurrent_weights.weight.T, core.recurrent_norm.weight)
        given = normalized(x @ core.input_weights.weight.T, core.input_norm.weight, core.input_norm.bias)
        f, i, o, g = (recurrent + given).split(UNITS, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(normalized(c, core.cell_norm.weight, core.cell_norm.bias))
        outputs.append(h)
    return torch.stack(outputs, 1), {"hidden": h, "cell": c}


def coupled_lstm(core, inputs, state):
    """NNCP's LSTM, with a root mean square of each gate's own."""
    h, c, outputs = state["hidden"], state["cell"], []
    weights = zip(
        core.input_weights.weight.split(UNITS),
        core.recurrent_weights.weight.split(UNITS),
        core.gain,
        core.bias,
        strict=True,
    )
    weights = list(weights)
    for x in inputs.unbind(1):
        sums = [x @ w.T + h @ u.T for w, u, _, _ in weights]
        gates = [
            s / (s.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias
            for s, (_, _, gain, bias) in zip(sums, weights, strict=True)
        ]
        f, i, o = (sigmoid(gate) for gate in gates[:3])
        c = f * c + torch.where(i < 1 - f, i, 1 - f) * tanh(gates[3])
        h = o * c
        outputs.append(h)
    return torch.stack(outputs, 1), {"hidden": h, "cell": c}


def sru(core, inputs, state):
    """Lei et al. 2018, equations 1 to 4, with its scaling correction."""
    c, outputs = state["cell"], []
    w_f, w_r, w, *w_s = core.input_weights.weight.split(UNITS)
    v_f, v_r = core.recurrent_weights.split(UNITS)
    b_f, b_r = core.bias.split(UNITS)
    for x in inputs.unbind(1):
        f = sigmoid(x @ w_f.T + v_f * c + b_f)
        r = sigmoid(x @ w_r.T + v_r * c + b_r)
        c = f * c + (1 - f) * (x @ w.T)
        skipped = x @ w_s[0].T if w_s else x
        outputs.append(r * c + (1 - r) * 3**0.5 * skipped)
    return torch.stack(outputs, 1), {"cell": c}


CELLS = {
    "layer norm lstm": (lambda: LayerNormLSTM(UNITS, FEATURES), layer_norm_lstm),
    "coupled lstm": (lambda: CoupledLSTM(UNITS, FEATURES), coupled_lstm),
    "sru": (lambda: SRU(UNITS, FEATURES), sru),
    "sru of equal sizes": (lambda: SRU(UNITS), sru),
}


@pytest.mark.parametrize("name", CELLS)
def test_it_is_its_formula(name):
    make, formula = CELLS[name]
    core = make().double()
    with torch.no_grad():
        for weight in core.parameters():
            weight += 0.3 * torch.randn_like(weight)
    inputs = (2 * torch.randn(LANES, STEPS, core.input_size, dtype=torch.float64)).requires_grad_()
    state = {key: torch.randn_like(leaf).requires_grad_() for key, leaf in core.initial_state(LANES).items()}
    results = []
    for run in (core, lambda *given: formula(core, *given)):
        outputs, after = run(inputs, state)
        loss = (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum()
        loss = loss + sum(leaf.square().sum() for leaf in after.values())
        gradients = torch.autograd.grad(loss, [inputs, *state.values(), *core.parameters()])
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        results.append((outputs, after, gradients))
    assert_close(*results, rtol=1e-10, atol=1e-10)


def test_both_sides_of_the_limit_of_the_input_gate_are_met():
    core = CoupledLSTM(UNITS, FEATURES)
    products = core.prepare(torch.randn(LANES, STEPS, FEATURES)).unflatten(2, (4, UNITS))
    f, i = sigmoid(torch.nn.functional.rms_norm(products, (UNITS,), eps=1e-5)).unbind(2)[:2]
    assert (i < 1 - f).any()
    assert (i > 1 - f).any()
    state = {"hidden": torch.zeros(LANES, UNITS), "cell": torch.ones(LANES, UNITS)}
    assert core(10 * torch.randn(LANES, 200, FEATURES), state)[1]["cell"].abs().max() <= 1


def test_the_variance_of_the_inputs_is_kept_by_a_new_sru():
    outputs, _ = SRU(1000)(torch.randn(LANES, 9, 1000), {"cell": torch.zeros(LANES, 1000)})
    assert outputs.square().mean().item() == pytest.approx(1, abs=0.2)


def test_the_forget_gates_of_a_layer_norm_lstm_start_open():
    core = LayerNormLSTM(UNITS, FEATURES)
    assert core.input_norm.bias.tolist() == [1.0] * UNITS + [0.0] * 3 * UNITS


class Average(Cell):
    """A user's own: an exponential average of the inputs, with the number of time steps seen."""

    def __init__(self, size=FEATURES):
        super().__init__()
        self.input_size = self.output_size = size
        self.calls = []

    def initial_state(self, num_lanes):
        return (torch.zeros(num_lanes, self.input_size), [torch.zeros(num_lanes, dtype=torch.long)])

    def step(self, x, state):
        assert x.shape == (LANES, FEATURES)
        average = 0.9 * state[0] + 0.1 * x
        return average, (average, [state[1][0] + 1])


class Prepared(Average):
    """The same, with the product of the inputs computed for all time steps at once."""

    def prepare(self, inputs):
        self.calls.append(inputs.shape)
        return {"tenth": [0.1 * inputs], "one": torch.ones(inputs.shape[:2], dtype=torch.long)}

    def step(self, x, state):
        average = 0.9 * state[0] + x["tenth"][0]
        return average, (average, [state[1][0] + x["one"]])


def test_a_window_is_prepared_as_a_whole_and_run_step_by_step():
    inputs = torch.randn(LANES, STEPS, FEATURES)
    plain, prepared = Average(), Prepared()
    state = plain.initial_state(LANES)
    outputs, after = prepared(inputs, state)
    assert_close((outputs, after), plain(inputs, state))
    assert prepared.calls == [(LANES, STEPS, FEATURES)]
    assert after[1][0].tolist() == [STEPS] * LANES
    decay = 0.1 * 0.9 ** torch.arange(STEPS - 1.0, -1, -1)
    assert_close(outputs[:, -1], torch.einsum("t,ltf->lf", decay, inputs))


def test_the_state_keeps_its_dtype_where_a_step_returns_another():
    class Wide(Average):
        def step(self, x, state):
            output, after = super().step(x.double(), state)
            assert after[0].dtype == torch.float64
            return output, after

    core = Wide()
    given = core.initial_state(LANES)
    _, after = core(torch.randn(LANES, 4, FEATURES), given)
    assert [leaf.dtype for leaf in tree_leaves(after)] == [leaf.dtype for leaf in tree_leaves(given)]


def test_a_cell_without_a_step_is_no_core():
    class Unfinished(Cell):
        def initial_state(self, num_lanes):
            return torch.zeros(num_lanes, 2)

    with pytest.raises(TypeError, match="step"):
        Unfinished()


@pytest.mark.parametrize("core_class", [LayerNormLSTM, CoupledLSTM, SRU])
def test_sizes_below_one_are_refused(core_class):
    assert core_class(6).input_size == core_class(6).output_size == 6
    assert list(inspect.signature(core_class).parameters) == ["hidden_size", "input_size"]
    with pytest.raises(InputError, match="hidden_size=0: must be 1 or more"):
        core_class(0)
    with pytest.raises(InputError, match="input_size=-1: must be 1 or more"):
        core_class(6, -1)
