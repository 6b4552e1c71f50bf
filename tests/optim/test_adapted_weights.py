import pytest
import torch
from torch.testing import assert_close

from lit_tbptt.optim.adapted_weights import AdaptedWeights

LR, DECAY = 0.3, 0.02


@pytest.fixture
def parameters():
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), (7,), (2, 3))]


@pytest.mark.parametrize(("scaled", "epsilon"), [(False, None), (True, None), (True, 2e-5)])
def test_steps_are_those_of_the_formula_written_by_hand(parameters, scaled, epsilon):
    rms = [torch.rand_like(each) * size for each, size in zip(parameters, (1.0, 1e-3, 600.0), strict=True)]
    rms = [each.detach() for each in rms]
    trained = [each.detach().clone() for each in parameters]
    expected = [each.clone() for each in trained]
    mean = sum(each.sum() / each.numel() for each in rms) / len(rms)
    weights = AdaptedWeights(parameters, LR, DECAY, rms if scaled else None, epsilon)
    limited = 0
    for _ in range(3):
        gradients = [torch.randn_like(each) for each in parameters]
        for w, t, g, r in zip(expected, trained, gradients, rms, strict=True):
            rate = torch.minimum(r / mean, torch.tensor(1 / DECAY)) if scaled else torch.ones((), dtype=w.dtype)
            limited += int((rate == 1 / DECAY).sum())
            scale = r + (epsilon or mean) if scaled else 1.0
            w.copy_(w - LR * g / scale + DECAY * rate * (t - w))
        with weights.in_use():
            weights.step(gradients)
            for parameter, w in zip(parameters, expected, strict=True):
                assert_close(parameter.detach(), w, rtol=0, atol=1e-12)
        for parameter, t in zip(parameters, trained, strict=True):
            assert torch.equal(parameter.detach(), t)


def test_steps_by_the_rms_do_not_depend_on_the_scale_of_the_loss(parameters):
    gradients = [torch.randn_like(each).detach() for each in parameters]
    rms = [torch.rand_like(each).detach() for each in parameters]
    values = []
    for scale in (1.0, 1e-6):
        weights = AdaptedWeights(parameters, LR, DECAY, [scale * each for each in rms])
        with weights.in_use():
            weights.step([scale * each for each in gradients])
            values.append([each.detach().clone() for each in parameters])
    for one, other in zip(*values, strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


def test_the_decay_is_limited_to_the_way_back(parameters):
    trained = [each.detach().clone() for each in parameters]
    rms = [torch.full_like(each, size).detach() for each, size in zip(parameters, (1.0, 1e-3, 600.0), strict=True)]
    weights = AdaptedWeights(parameters, 0.0, 0.5, rms)
    with weights.in_use(), torch.no_grad():
        for parameter in parameters:
            parameter.add_(1.0)
        weights.step([None] * 3)
        moved = [(each - before).flatten()[0].item() for each, before in zip(parameters, trained, strict=True)]
    mean = (1 + 1e-3 + 600) / 3
    assert moved == pytest.approx([1 - 0.5 / mean, 1 - 0.5e-3 / mean, 0.0])


def test_a_sparse_gradient_counts_as_a_dense_one(parameters):
    values = []
    for make in (torch.Tensor.to_sparse, torch.Tensor.clone):
        weights = AdaptedWeights(parameters, LR, DECAY)
        torch.manual_seed(3)
        with weights.in_use():
            weights.step([make(torch.randn_like(each).detach()) for each in parameters])
            values.append([each.detach().clone() for each in parameters])
    for one, other in zip(*values, strict=True):
        assert torch.equal(one, other)


def test_an_error_inside_restores_the_trained_weights(parameters):
    trained = [each.detach().clone() for each in parameters]
    weights = AdaptedWeights(parameters, LR, DECAY)

    def interrupted():
        with weights.in_use():
            weights.step([torch.ones_like(each) for each in parameters])
            assert not torch.equal(parameters[0], trained[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for parameter, before in zip(parameters, trained, strict=True):
        assert torch.equal(parameter.detach(), before)
