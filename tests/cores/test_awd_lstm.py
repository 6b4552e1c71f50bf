"""AWDLSTM and the dropouts of its paper against `awd_reference.py`, which is written as the paper says."""

import copy
from itertools import pairwise

import pytest
import torch
from awd_reference import Reference, core_step, layers_of, zeros
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from lit_tbptt import AWDLSTM, InputError, RecurrentLM, Run, Truncation, Window
from lit_tbptt.tbptt.gauss_newton import linearize

LANES, FEATURES, UNITS, WORDS, STEPS = 3, 7, 5, 13, 10


def core_of(**options):
    torch.manual_seed(2)
    return AWDLSTM(**({"hidden_size": UNITS, "num_layers": 3, "input_size": FEATURES} | options)).double()


def language_model():
    core = core_of()
    model = RecurrentLM(
        WORDS,
        core,
        embedding_dropout=0.4,
        output_dropout=0.3,
        dropout_over_time="shared",
        tie_weights=True,
        vocabulary_dropout=0.2,
    )
    return model.double()


def lane_ids(k1, lanes=LANES):
    return torch.randint(WORDS, (lanes, STEPS * k1 + 1), generator=torch.Generator().manual_seed(3))


def windows_of(ids, k1, resets):
    times = range(0, ids.shape[1] - 1, k1)
    return [Window(ids[:, at : at + k1], ids[:, at + 1 : at + k1 + 1], resets.get(at)) for at in times]


@pytest.mark.parametrize("recompute_every", [None, 3])
@pytest.mark.parametrize(("k1", "k2"), [(6, 6), (4, 10), (2, 3)])
def test_losses_and_gradients_of_ten_steps_are_those_of_the_paper(k1, k2, recompute_every):
    ids, resets = lane_ids(k1), {3 * k1: torch.tensor([False, True, False])}
    model, truncation, carry = language_model(), Truncation(k1, k2, recompute_every), None
    reference, seen = Reference(model, ids, k1, k2, resets), []
    assert len(windows_of(ids, k1, resets)) == STEPS
    for number, window in enumerate(windows_of(ids, k1, resets)):
        cost = truncation(model, window, carry)
        model.zero_grad()
        cost.loss.backward()
        expected = reference.loss(number, model.noise)
        assert_close(cost.loss.detach(), expected, rtol=0, atol=1e-9)
        for name, part in model.named_parameters():
            assert_close(part.grad, reference.weights[name].grad, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        reference.step(0.02)
        with torch.no_grad():
            for part in model.parameters():
                part -= 0.02 * part.grad
        carry = cost.carry.detach()
        seen.append(model.noise)
    assert all(not torch.equal(a["core"]["weights"][0], b["core"]["weights"][0]) for a, b in pairwise(seen))
    assert all(not torch.equal(a["vocabulary"], b["vocabulary"]) for a, b in pairwise(seen))


def test_masks_drop_what_their_probabilities_say():
    torch.manual_seed(5)
    core = AWDLSTM(31, 3, weight_drop=0.4, dropout=0.25, input_size=29)
    noise = core.begin_window(211)
    assert [tuple(mask.shape) for mask in noise["weights"]] == [(124, 31), (124, 31), (116, 29)]
    assert noise["features"][0] is None
    assert [tuple(mask.shape) for mask in noise["features"][1:]] == [(211, 1, 31), (211, 1, 31)]
    for masks, p in ((noise["weights"], 0.4), (noise["features"][1:], 0.25)):
        for mask in masks:
            assert_close(mask.unique(), torch.tensor([0.0, 1 / (1 - p)]))
            assert (mask == 0).float().mean().item() == pytest.approx(p, abs=0.04)
    assert not torch.equal(*noise["weights"][:2])
    model = RecurrentLM(2003, core, vocabulary_dropout=0.15)
    vocabulary = model.begin_window(2)["vocabulary"]
    assert (vocabulary == 0).float().mean().item() == pytest.approx(0.15, abs=0.04)
    assert_close(vocabulary.unique(), torch.tensor([0.0, 1 / 0.85]))


def test_evaluation_uses_all_weights_and_draws_nothing():
    core, inputs = core_of(), torch.randn(LANES, 9, FEATURES, dtype=torch.float64)
    core.noise = core.begin_window(LANES)
    core.eval()
    before = torch.get_rng_state()
    assert core.begin_window(LANES) is None
    assert torch.equal(torch.get_rng_state(), before)
    weights = dict(core.named_parameters())
    layers = [[weights[name] for name in names] for names in layers_of(core)]
    state, expected = zeros(layers, LANES), []
    for x in inputs.unbind(1):
        x, state = core_step(x, state, layers, None)
        expected.append(x)
    outputs, after = core(inputs, core.initial_state(LANES))
    assert_close(outputs, torch.stack(expected, 1), rtol=0, atol=1e-12)
    for (hidden, cell), given in zip(state, after, strict=True):
        assert_close((given["hidden"][:, 0], given["cell"][:, 0]), (hidden, cell), rtol=0, atol=1e-12)


def test_without_dropouts_training_is_evaluation():
    core, inputs = core_of(weight_drop=0.0, dropout=0.0), torch.randn(LANES, 4, FEATURES, dtype=torch.float64)
    assert core.begin_window(LANES) is None
    found = core(inputs, core.initial_state(LANES))
    assert_close(found, core.eval()(inputs, core.initial_state(LANES)), rtol=0, atol=0)
    assert core_of(weight_drop=0.0).begin_window(LANES)["weights"] == [None] * 3
    assert core_of(dropout=0.0).begin_window(LANES)["features"] == [None] * 3


def test_a_closure_sees_new_weights_under_the_masks_of_its_window():
    k1 = 6
    ids = lane_ids(k1)
    model, window = language_model(), windows_of(ids, k1, {})[0]
    run = Run(model, Truncation(k1), repeatable=True)
    first = run(window, None).loss
    masks = copy.deepcopy(model.noise)
    with torch.no_grad():
        for part in model.parameters():
            part *= 0.9
    assert_close(run(window, None).loss, Reference(model, ids, k1, k1, {}).loss(0, masks), rtol=0, atol=1e-9)
    assert not torch.equal(run(window, None).loss, first)


def test_second_derivatives_and_curvature_keep_the_masks():
    core = core_of(hidden_size=2, num_layers=2, output_size=3)
    inputs = torch.randn(2, 3, FEATURES, dtype=torch.float64, requires_grad=True)
    core.noise, state = core.begin_window(2), core.initial_state(2)
    name = "layers.1.rnn.0.weight_hh_l0"
    recurrent = core.get_parameter(name).detach().clone().requires_grad_()

    def outputs(inputs, recurrent):
        return functional_call(core, {name: recurrent}, (inputs, state))[0]

    assert torch.autograd.gradcheck(outputs, (inputs, recurrent))
    assert torch.autograd.gradgradcheck(outputs, (inputs, recurrent))

    model = language_model()
    window = windows_of(lane_ids(4), 4, {})[0]
    parameters = list(model.parameters())
    torch.manual_seed(6)
    curvature = linearize(model, Truncation(4), (window,), None, parameters)
    vector = [torch.randn_like(part) for part in parameters]
    dropped = model.noise["core"]["weights"][0] == 0
    product = curvature.product(vector)
    names = [name for name, _ in model.named_parameters()]
    recurrent = product[names.index("core.layers.0.rnn.0.weight_hh_l0")]
    assert dropped.any()
    assert not recurrent[dropped].any()
    assert recurrent[~dropped].any()


def test_a_copy_made_within_a_window_runs_under_its_masks():
    core, inputs = core_of(), torch.randn(LANES, 4, FEATURES, dtype=torch.float64)
    core.noise = core.begin_window(LANES)
    copied = copy.deepcopy(core)
    state = core.initial_state(LANES)
    assert_close(copied(inputs, state), core(inputs, state), rtol=0, atol=0)


def test_under_autocast_masked_weights_keep_the_states_type():
    core, inputs = core_of().float(), torch.randn(LANES, 4, FEATURES)
    core.noise, state = core.begin_window(LANES), core.initial_state(LANES)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, after = core(inputs, state)
    assert {leaf.dtype for leaf in tree_leaves(after)} == {torch.float32}
    assert_close(outputs.float(), core(inputs, state)[0], rtol=0.05, atol=0.02)
    outputs.float().square().sum().backward()
    assert all(part.grad.isfinite().all() for part in core.parameters())


def test_outputs_stay_time_first_in_memory():
    model = language_model()
    model.noise = model.begin_window(LANES)
    outputs, _ = model.run_core(lane_ids(4)[:, :5], model.initial_state(LANES))
    assert outputs.stride(1) > outputs.stride(0)
    assert model._embed(lane_ids(4)[:, :5]).transpose(0, 1).is_contiguous()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0: must be 1 or more"),
        ({"num_layers": 0}, "num_layers=0: must be 1"),
        ({"input_size": 0}, "input_size=0: must be 1"),
        ({"output_size": 0}, "output_size=0: must be 1"),
        ({"weight_drop": 1.0}, r"weight_drop=1\.0: must be at least 0 and below 1"),
        ({"dropout": -0.1}, r"dropout=-0\.1: must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        core_of(**options)


def test_masks_that_were_not_drawn_are_asked_for():
    core = core_of()
    with pytest.raises(InputError, match=r"weight_drop=0.5, dropout=0.25: .*begin_window\(num_lanes\).*call eval"):
        core(torch.zeros(LANES, 2, FEATURES, dtype=torch.float64), core.initial_state(LANES))
    model = RecurrentLM(WORDS, AWDLSTM(4, 2, 0.0, 0.0, 3), vocabulary_dropout=0.3)
    with pytest.raises(InputError, match=r"vocabulary_dropout=0.3: .*begin_window\(num_lanes\)"):
        model(torch.zeros(LANES, 2, dtype=torch.long), model.initial_state(LANES))
    with pytest.raises(InputError, match=r"vocabulary_dropout=1\.0: must be at least 0 and below 1"):
        RecurrentLM(WORDS, AWDLSTM(4, 2, input_size=3), vocabulary_dropout=1.0)
