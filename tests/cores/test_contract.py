"""What every core promises, those of the package and a user's own: one table of properties over `all_cores.py`."""

import copy
import pickle

import pytest
import torch
from all_cores import CORES, PACKAGES, SLOW, TOLERANCES
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from lit_tbptt import Batch, Carry, Evaluation, RecurrentCore, RecurrentLM, Truncation, Window
from lit_tbptt.cores.described import build, describe
from lit_tbptt.tbptt.state import reset_lanes

LANES, STEPS, FEATURES, VOCABULARY = 3, 11, 7, 13


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CORES])
def name(request):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return request.param


@pytest.fixture
def core(name):
    torch.manual_seed(1)
    return CORES[name]().eval()


@pytest.fixture
def close(name):
    tolerance = TOLERANCES.get(name, 1e-10)
    return lambda a, b: assert_close(a, b, rtol=tolerance, atol=tolerance)


def inputs_of(lanes=LANES, steps=STEPS, dtype=torch.float64):
    return torch.randn(lanes, steps, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(
        dtype
    )


def in_float64(core):
    """The core and a state that some time steps have left, in float64."""
    core = core.double()
    state = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, core.initial_state(LANES))
    return core, tree_map(torch.Tensor.detach, core(inputs_of(steps=2) + 1, state)[1])


def floating(tree):
    return [leaf for leaf in tree_leaves(tree) if leaf.is_floating_point()]


def described(state):
    return tree_structure(state), [(leaf.shape, leaf.dtype) for leaf in tree_leaves(state)]


def test_shapes_and_state_are_as_the_contract_says(core):
    state = core.initial_state(LANES)
    outputs, after = core(inputs_of(dtype=torch.float32), state)
    assert outputs.shape == (LANES, STEPS, core.output_size)
    assert described(after) == described(state)
    assert all(leaf.shape[0] == LANES for leaf in tree_leaves(state))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_of_the_weights_is_that_of_outputs_and_state(core, dtype):
    core = core.to(dtype)
    state = core.initial_state(LANES)
    if not list(core.parameters()):  # nothing to take a dtype from
        state = tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, state)
    outputs, after = core(inputs_of(dtype=dtype), state)
    assert outputs.dtype == dtype
    assert outputs.isfinite().all()
    assert described(after) == described(state)


def test_under_autocast_the_state_keeps_its_type(core):
    state = core.initial_state(LANES)
    with torch.autocast("cpu", torch.bfloat16):
        _, after = core(inputs_of(dtype=torch.float32), state)
    assert described(after) == described(state)


@pytest.mark.parametrize("cuts", [(1,), (4,), (10,), (3, 4, 9)])
def test_cutting_the_time_axis_changes_no_output_state_or_gradient(core, close, cuts):
    core, given = in_float64(core)

    def run(cuts):
        inputs = inputs_of().requires_grad_()
        start = tree_map(lambda leaf: leaf.clone().requires_grad_(leaf.is_floating_point()), given)
        outputs, state = [], start
        for piece in inputs.tensor_split(cuts, 1):
            out, state = core(piece, state)
            outputs.append(out)
        outputs = torch.cat(outputs, 1)
        loss = (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)).sum()
        loss = loss + sum((leaf**2).sum() for leaf in floating(state))
        with_gradient = [inputs, *floating(start), *(weight for weight in core.parameters() if weight.requires_grad)]
        return outputs, state, torch.autograd.grad(loss, with_gradient, allow_unused=True, materialize_grads=True)

    whole, parts = run(()), run(cuts)
    assert all(gradient.abs().sum() > 0 for gradient in whole[2][: 1 + len(floating(given))])
    close(parts, whole)


@pytest.mark.parametrize("far_edge", [0, 1, 4, 11])
def test_the_state_in_the_middle_is_that_of_a_cut(core, close, far_edge):
    core, given = in_float64(core)
    outputs, inside, after = core.forward_through(inputs_of(), given, far_edge)
    close((outputs, after), core(inputs_of(), given))
    close(inside, core(inputs_of()[:, :far_edge], given)[1] if far_edge else given)
    assert described(inside) == described(given)


def test_lanes_do_not_mix(core, close):
    core, given = in_float64(core)
    outputs, after = core(inputs_of(), given)
    for lane in range(LANES):
        only = slice(lane, lane + 1)
        alone = core(inputs_of()[only], tree_map(lambda leaf, only=only: leaf[only], given))
        close(alone, (outputs[only], tree_map(lambda leaf, only=only: leaf[only], after)))


def test_a_reset_of_one_lane_leaves_the_others_alone(core, close):
    core, given = in_float64(core)
    reset = torch.tensor([False, True, False])
    initial = tree_map(lambda old, new: new.to(old.dtype), given, core.initial_state(LANES))
    start = reset_lanes(reset, initial, given)
    outputs, _ = core(inputs_of(), start)
    close(outputs[~reset], core(inputs_of(), given)[0][~reset])
    close(outputs[reset], core(inputs_of(), initial)[0][reset])


def test_no_lane_at_all_can_be_run(core):
    outputs, after = core(inputs_of(0, dtype=torch.float32), core.initial_state(0))
    assert outputs.shape == (0, STEPS, core.output_size)
    assert described(after) == described(core.initial_state(0))


class Evaluated(RecurrentLM):
    """What an Evaluation asks of a module."""

    device, evaluation_metrics = torch.device("cpu"), None

    def evaluation_window(self, window, state):
        return self.window_loss(window, state)

    prediction_window = RecurrentLM.predict_window


def test_a_process_without_lanes_evaluates_nothing(name):
    task, evaluation = Evaluated(VOCABULARY, CORES[name]()).eval(), Evaluation()
    empty, full = (Window(*torch.zeros(2, lanes, STEPS, dtype=torch.long)) for lanes in (0, LANES))
    evaluation.begin(task)
    evaluation.add(task, Batch((empty, empty), {}))
    assert evaluation.predict(task, Batch((empty,), {})) is None
    assert evaluation._sums.tolist() == [0, 0]
    cost = task.evaluation_window(empty, task.initial_state(0))  # as a training window is run there
    assert (float(cost.loss.detach()), int(cost.num_targets)) == (0, 0)
    evaluation.add(task, Batch((full,), {}))
    assert evaluation._sums[1] == LANES * STEPS


def test_the_given_state_is_not_changed(core):
    core, given = in_float64(core)
    before = copy.deepcopy(given)
    core(inputs_of(), given)
    assert_close(given, before, rtol=0, atol=0)


def test_copies_are_equal_and_independent(core):
    core, given = in_float64(core)
    expected = core(inputs_of(), given)
    ours = [type(part) for part in core.modules() if isinstance(part, RecurrentCore)]
    own = next((each for each in ours if not each.__module__.startswith("lit_tbptt")), None)
    again = build(describe(core), own).double().eval()
    again.load_state_dict(core.state_dict())
    for copied in (copy.deepcopy(core), pickle.loads(pickle.dumps(core)), again):
        assert_close(copied(inputs_of(), given), expected, rtol=0, atol=0)
        shared = {weight.data_ptr() for weight in core.parameters()} & {
            weight.data_ptr() for weight in copied.parameters()
        }
        assert not shared - {0}


def test_functional_call_uses_the_weights_that_it_is_given(core, close):
    core, given = in_float64(core)
    weights = {name: weight.detach() * 0.5 for name, weight in core.named_parameters()}
    if not weights:
        pytest.skip("nothing is trained")
    halved = copy.deepcopy(core)
    with torch.no_grad():
        for weight in halved.parameters():
            weight *= 0.5
    before = core(inputs_of(), given)[0]
    called = torch.func.functional_call(core, weights, (inputs_of(), given))
    close(called, halved(inputs_of(), given))
    assert not torch.equal(called[0], before)
    close(core(inputs_of(), given)[0], before)


def language_model(name):
    torch.manual_seed(1)
    return RecurrentLM(VOCABULARY, CORES[name](), output_dropout=0.2).double()


def windows(k1):
    ids = torch.randint(VOCABULARY, (LANES, 24), generator=torch.Generator().manual_seed(3))
    resets = {8: torch.tensor([False, True, False])}
    return [Window(ids[:, at : at + k1], ids[:, at + 1 : at + k1 + 1], resets.get(at)) for at in range(0, 24 - k1, k1)]


def train(task, truncation, windows, carry=None):
    """Losses, gradients and the last carry of windows with a step after each."""
    seen = []
    for window in windows:
        loss, _, carry, _ = truncation(task, window, carry)
        carry = carry.detach()
        task.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in task.parameters():
                if weight.grad is not None:
                    seen.append(weight.grad.clone())
                    weight -= 0.003 * weight.grad
        seen.append(loss.detach())
    return seen, carry


@pytest.mark.parametrize("recompute_every", [3, 5])
def test_recomputation_changes_no_loss_or_gradient(name, close, recompute_every):
    results = []
    for every in (None, recompute_every):
        task = language_model(name)
        torch.manual_seed(4)
        results.append(train(task, Truncation(4, 10, every), windows(4))[0])
    close(*results)


def test_the_noise_of_a_window_is_the_same_in_its_context(name, close):
    """In one piece, or cut anywhere, the same noise gives the same outputs in training."""
    torch.manual_seed(1)
    core = CORES[name]().double()
    given = tree_map(torch.Tensor.detach, core.initial_state(LANES))
    torch.manual_seed(4)
    core.noise = core.begin_window(LANES)
    if core.noise is None:
        pytest.skip("it draws no such noise")
    assert core.eval().begin_window(LANES) is None
    core.train()
    outputs, after = core(inputs_of(), given)
    first, state = core(inputs_of()[:, :4], given)
    second, state = core(inputs_of()[:, 4:], state)
    close((torch.cat([first, second], 1), state), (outputs, after))
    core.noise = core.begin_window(LANES)
    assert not torch.equal(core(inputs_of(), given)[0], outputs)


def test_a_run_that_is_saved_and_continued_is_equal_to_the_bit(name, tmp_path):
    task, truncation = language_model(name), Truncation(4, 6)
    torch.manual_seed(4)
    _, carry = train(task, truncation, windows(4)[:2])
    torch.save([task.state_dict(), carry.describe(), torch.get_rng_state()], tmp_path / "saved.pt")
    expected, _ = train(task, truncation, windows(4)[2:], carry)
    weights, described, generator = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = language_model(name)
    again.load_state_dict(weights)
    torch.set_rng_state(generator)
    carried = Carry.from_descriptions([described], range, again.initial_state, torch.device("cpu"))
    found, _ = train(again, truncation, windows(4)[2:], carried)
    assert_close(found, expected, rtol=0, atol=0)
