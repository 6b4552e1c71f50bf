import pytest
import torch
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, Adaptive, InputError, RecurrentLM, Truncation, Window
from lit_tbptt.models.metrics import summed_nats

LANES, STEPS, FEATURES, WORDS = 3, 7, 12, 300
CUTOFFS = [140, 210]


def layer(**options):
    torch.manual_seed(1)
    return Adaptive(CUTOFFS, 2.0, **options).make(FEATURES, WORDS).double()


def test_probabilities_are_those_of_the_cluster_times_those_in_it_and_sum_to_one():
    head, features = layer(), torch.randn(LANES, STEPS, FEATURES, dtype=torch.double)
    first = torch.softmax(features @ head.head.weight.t(), -1)
    parts = [first[..., :140]]
    for number, (down, up) in enumerate(head.tail):
        inside = torch.softmax(features @ down.weight.t() @ up.weight.t(), -1)
        parts.append(first[..., 140 + number, None] * inside)
    expected = torch.cat(parts, -1)
    assert [part.shape[-1] for part in parts] == [140, 70, 90]
    assert [down.out_features for down, _ in head.tail] == [6, 3]
    assert_close(head(features).exp(), expected, rtol=0, atol=1e-10)
    assert_close(expected.sum(-1), torch.ones(LANES, STEPS, dtype=torch.double), rtol=0, atol=1e-10)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("words", [WORDS, 200, 130])  # 130: no target is in a cluster, yet all have a gradient
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_loss_and_gradients_are_those_of_all_probabilities(dtype, tolerance, words, masked):
    head = layer().to(dtype)
    features = torch.randn(LANES, STEPS, FEATURES, dtype=dtype, requires_grad=True)
    targets = torch.randint(words, (LANES, STEPS))
    mask = torch.rand(LANES, STEPS) < 0.6 if masked else None
    operands = [features, *head.parameters()]
    expected, count = summed_nats(head(features), targets, mask)
    for joined in (True, False):
        if not joined:  # the first softmax in its plain form
            head.head.register_forward_hook(lambda *args: None)
        loss, num_targets = head.nats(features, targets, mask)
        assert num_targets == count
        assert_close(loss, expected, rtol=tolerance, atol=tolerance)
        assert_close(
            torch.autograd.grad(loss, operands, retain_graph=True),
            torch.autograd.grad(expected, operands, retain_graph=True, materialize_grads=True),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("core", [GRU, LSTM])
def test_a_language_model_trains_on_it_over_any_horizon(core):
    torch.manual_seed(2)
    model = RecurrentLM(WORDS, core(FEATURES), head=Adaptive(CUTOFFS, 2.0)).double()
    truncation, carry = Truncation(3, 5), None
    tokens = torch.randint(WORDS, (LANES, 10))
    for window in Window(tokens[:, :-1], tokens[:, 1:]).pieces(3):
        loss, num_targets, after, _ = truncation(model, window, carry)
        if carry is None:
            outputs, _ = model.predict_window(window, model.initial_state(LANES))
            assert_close(loss, model.outputs_loss(outputs, window)[0], rtol=0, atol=1e-10)
        carry = after.detach()
        assert num_targets == LANES * 3
        assert all(each is not None for each in torch.autograd.grad(loss, list(model.parameters())))


def test_a_hook_on_the_layer_sees_all_log_probabilities():
    model = RecurrentLM(WORDS, GRU(FEATURES), head=Adaptive(CUTOFFS, 2.0)).double()
    window = Window(*torch.randint(WORDS, (2, LANES, STEPS)))
    expected = model.window_loss(window, model.initial_state(LANES)).loss
    seen = []
    model.head.register_forward_hook(lambda layer, given, outputs: seen.append(outputs.shape))
    assert_close(model.window_loss(window, model.initial_state(LANES)).loss, expected, rtol=0, atol=1e-10)
    assert seen == [(LANES, STEPS, WORDS)]


def test_it_runs_under_autocast():
    model = RecurrentLM(WORDS, GRU(FEATURES), head=Adaptive(CUTOFFS, 2.0))
    window = Window(*torch.randint(WORDS, (2, LANES, STEPS)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.window_loss(window, model.initial_state(LANES)).loss
        logits, _ = model.predict_window(window, model.initial_state(LANES))
        plain, _ = model.outputs_loss(logits, window)
    loss.backward()
    assert_close(loss, plain, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("cutoffs", "narrowing", "message"),
    [
        ([], 4.0, r"head.cutoffs=\[\]"),
        ([0, 5], 4.0, "above 0"),
        ([20, 20], 4.0, "each larger"),
        ([20], 0.5, "head.narrowing=0.5"),
        ([20, 300], 2.0, "vocabulary of 300"),
        ([20, 40], 4.0, "12 features"),
    ],
)
def test_settings_are_checked(cutoffs, narrowing, message):
    with pytest.raises(InputError, match=message):
        Adaptive(cutoffs, narrowing).make(FEATURES, WORDS)


def test_weights_cannot_be_tied_to_it():
    with pytest.raises(InputError, match="tie_weights=True with head=Adaptive"):
        RecurrentLM(WORDS, GRU(FEATURES), tie_weights=True, head=Adaptive(CUTOFFS, 2.0))
