"""What is logged as train/gradient_norm."""

import math

import pytest
import torch
from command_line import curve
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from loops import Recording, batches, fit, sequence
from resuming import everything, fit_text, per_step, same
from tasks import Regression
from torch import nn

STEPS = 13  # of an epoch


class Norms(Callback):
    """Keeps the norm of every step's gradient before it is clipped, and whether the module has computed it."""

    def __init__(self):
        self.norms, self.known = {}, {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        squares = [parameter.grad.to_dense().square().sum().item() for parameter in module.parameters()]
        self.norms[trainer.global_step + 1] = math.sqrt(sum(squares))

    def on_step_end(self, trainer, module):
        self.known[trainer.global_step] = module.gradient_norm is not None


def logged(module, every, data=None, callbacks=(), **options):
    logger = Recording()
    options = {"max_epochs": 1, "logger": logger, "log_every_n_steps": every, "callbacks": list(callbacks)} | options
    fit(module, batches(5, 4, data), **options)
    return [row.get("train/gradient_norm") for row in logger.rows]


@pytest.mark.parametrize(
    ("clip_norm", "max_steps", "steps"),
    [
        (None, -1, [3, 6, 9, 12, None]),  # nobody knew that step 13 would be the last
        (0.05, -1, [3, 6, 9, 12, 13]),
        (None, 11, [3, 6, 9, 11]),
        (0.05, 11, [3, 6, 9, 11]),
    ],
)
def test_it_is_that_of_all_parameters_before_clipping_at_the_step_that_is_logged(clip_norm, max_steps, steps):
    norms = Norms()
    rows = logged(Regression(k1=5, lr=0.1, clip_norm=clip_norm), 3, callbacks=[norms], max_steps=max_steps)
    assert rows == [step and pytest.approx(norms.norms[step], rel=1e-12) for step in steps]
    assert min(norms.norms.values()) > 0.05
    assert len(set(norms.norms.values())) == len(norms.norms) == (STEPS if max_steps < 0 else max_steps)
    assert norms.known == {step: clip_norm is not None or step in steps for step in norms.norms}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_under_fp16_it_is_of_the_unscaled_gradient_and_changes_no_weight(clip_norm, fused):
    class Fused(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, fused=fused)

    def train(every, half):
        torch.manual_seed(2)
        module = Fused(k1=5, clip_norm=clip_norm)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9)
        plugin = {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
        return module, logged(module, every, data, **(plugin if half else {"precision": "32-true"}))

    data = tuple(part.float() for part in sequence())
    module, rows = train(2, half=True)
    _, expected = train(2, half=False)
    assert len(rows) == 7
    assert rows[:6] == pytest.approx(expected[:6], rel=0.05)
    assert (rows[6] is None) == (clip_norm is None)
    unlogged, _ = train(1000, half=True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, unlogged.state_dict()[name])


class Biased(Regression):
    """Adds a looked-up bias to every output, each of the five at several places."""

    def __init__(self, sparse):
        super().__init__(k1=5, lr=0.1)
        self.biases = nn.Embedding(5, 1, sparse=sparse)

    def window_loss(self, window, state):
        places = torch.arange(window.num_lanes * window.num_time_steps).view(window.num_lanes, -1) % 5
        return super().window_loss(window._replace(targets=window.targets - self.biases(places).squeeze(-1)), state)


def test_it_is_known_of_sparse_gradients():
    rows = []
    for sparse in (False, True):
        torch.manual_seed(2)
        rows.append(logged(Biased(sparse), 4, max_steps=STEPS))
    assert len(rows[0]) == 4
    assert rows[1] == pytest.approx(rows[0], rel=1e-12)


class Unclipped(Callback):
    def setup(self, trainer, module, stage):
        module.clip_norm = None


@pytest.mark.parametrize("stop", [2, 3, 7, 10, 13])
def test_a_run_without_clipping_that_is_continued_logs_the_same(stop, tmp_path):
    whole, stopped = tmp_path / "whole" / "version_0", tmp_path / "stopped" / "version_0"
    trainer, module, _ = fit_text(whole, 4, per_step, callbacks=[Unclipped()])
    expected = everything(trainer, module)
    assert [int(row["step"]) for row in curve(whole) if "train/gradient_norm" in row] == [3, 6, 9, 12]
    fit_text(stopped, 4, per_step, stop, callbacks=[Unclipped()])
    assert int([row for row in curve(stopped) if "train/gradient_norm" in row][-1]["step"]) == stop
    last = stopped / "checkpoints" / "last.ckpt"
    trainer, module, _ = fit_text(stopped, 4, per_step, resume=last, callbacks=[Unclipped()])
    same(everything(trainer, module), expected)
    assert curve(stopped) == curve(whole)
