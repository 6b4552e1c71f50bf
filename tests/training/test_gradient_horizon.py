"""The curves and pictures of GradientHorizon; and that looking at gradients changes nothing."""

import copy
import csv

import pytest
import torch
from command_line import curve
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from loops import LANES, fit
from resuming import everything, fit_text, per_step, same
from tasks import Batches, Regression
from torch import nn

from lit_tbptt import GradientHorizon, InputError, LitTBPTT, Window

OPTIONS = {"every_n_steps": 3, "tokens_back": 10}


@pytest.mark.slow
def test_training_is_what_it_would_be_without(tmp_path):
    class Gradients(Callback):
        def __init__(self):
            self.kept = []

        def on_step_end(self, trainer, module):
            self.kept.append([weight.grad.clone() for weight in module.parameters()])

    ends, gradients = [], []
    for name, callbacks in (("without", []), ("with", [GradientHorizon(**OPTIONS)])):
        after = Gradients()
        folder = tmp_path / name / "run" / "version_0"
        trainer, module, _ = fit_text(folder, 4, per_step, k2=7, callbacks=[*callbacks, after])
        ends.append(everything(trainer, module))
        gradients.append(after.kept)
    same(*reversed(ends))
    assert all(torch.equal(a, b) for x, y in zip(*gradients, strict=True) for a, b in zip(x, y, strict=True))
    pictures = sorted(path.name for path in (folder / "gradient_horizon").iterdir())
    assert pictures == [f"step_{step}.{kind}" for step in (12, 3, 6, 9) for kind in ("csv", "png")]
    rows = list(csv.reader((folder / "gradient_horizon" / "step_9.csv").read_text().splitlines()))
    assert rows[0] == ["tokens_back", "norm"]
    assert [int(row[0]) for row in rows[1:]] == list(range(11))
    # Steps 1 to 7 are the first epoch, and step 8 resets every lane: nothing reaches back beyond it.
    assert [float(row[1]) > 0 for row in rows[1:]] == [True] * 7 + [False] * 4


@pytest.mark.parametrize("stop", [5, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (4, 8, 11))])
def test_a_resumed_run_draws_the_same_curves(stop, tmp_path):
    folders = [tmp_path / name / "run" / "version_0" for name in ("whole", "parts")]
    fit_text(folders[0], 4, per_step, k2=7, callbacks=[GradientHorizon(4, 9)])
    fit_text(folders[1], 4, per_step, stop, k2=7, callbacks=[GradientHorizon(4, 9)])
    last = folders[1] / "checkpoints" / "last.ckpt"
    fit_text(folders[1], 4, per_step, k2=7, callbacks=[GradientHorizon(4, 9)], resume=last)
    assert curve(folders[1]) == curve(folders[0])
    assert sum("horizon/share_beyond_k2" in row for row in curve(folders[0])) == 3
    for path in (folders[0] / "gradient_horizon").glob("*.csv"):
        assert (folders[1] / "gradient_horizon" / path.name).read_text() == path.read_text()


def test_tensorboard_has_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger, inputs = TensorBoardLogger(tmp_path, "run", "0"), torch.randn(LANES, 40)
    windows = list(Window(inputs, inputs).pieces(4))
    options = {"max_epochs": 1, "precision": "32-true", "callbacks": [GradientHorizon(5)]}
    fit(Regression(k1=4), Batches(windows, 3), logger=logger, **options)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [event.step for event in events.Images("horizon/gradient")] == [5, 10]


@pytest.mark.slow
def test_a_curve_comes_as_soon_as_it_can(tmp_path):
    """Where the last token is not scored, and where more tokens are wanted than have gone by."""

    def drawn(options, k1, masks=()):
        inputs = torch.randn(LANES, 40)
        windows = list(Window(inputs, inputs).pieces(k1))
        for number in masks:
            windows[number] = windows[number]._replace(mask=torch.zeros(LANES, k1, dtype=torch.bool))
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        module = Masked(k1=k1)
        fit(module, Batches(windows, 3), max_epochs=1, default_root_dir=folder, callbacks=[GradientHorizon(**options)])
        return sorted(int(path.stem[5:]) for path in folder.glob("gradient_horizon/*.csv"))

    assert drawn({"every_n_steps": 4}, 4) == [4, 8]
    assert drawn({"every_n_steps": 3}, 4) == [4, 7, 10]
    assert drawn({"every_n_steps": 3}, 4, masks=[6]) == [4, 10]
    assert drawn({"every_n_steps": 4}, 4, masks=[3]) == [7, 10]
    assert drawn({"every_n_steps": 1}, 2) == [4, 7, 10, 13, 16, 19]
    assert drawn({"every_n_steps": 2, "tokens_back": 20}, 4) == [7]
    assert drawn({"every_n_steps": 2, "tokens_back": 200}, 4) == []


class Masked(Regression):
    def window_loss(self, window, state):
        loss, _, state = super().window_loss(window, state)
        scored = window.mask_or_ones()
        return loss * scored.any(), int(scored.sum()), state


class Cell(LitTBPTT):
    """h = f(w h + x), in the way of a user who does not think of dtypes."""

    def __init__(self, weight, bend, state, norm=None, **options):
        super().__init__(k1=5, clip_norm=0.1, **options)
        self.inner, self.norm, self.bend, self.state = nn.Linear(1, 1, bias=False), norm, bend, state
        nn.init.constant_(self.inner.weight, weight)

    def initial_state(self, num_lanes):
        return self.state(num_lanes)

    def window_loss(self, window, state):
        x = window.inputs.unsqueeze(-1)
        x = x if self.norm is None else self.norm(x.transpose(1, 2)).transpose(1, 2)
        total = 0
        for step in x.unbind(1):
            state = self.bend(self.inner(state) + self.inner(step)) if state.is_floating_point() else state + 1
            total = total + (state.float() + self.inner(step)).square().sum()
        return total, window.targets.numel(), state

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def float_state(num_lanes):
    return torch.zeros(num_lanes, 1)


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("cell", "files"),
    [
        ((0.5, torch.tanh, float_state), 4),
        ((20.0, lambda x: (20 * x).sin(), float_state), 4),  # explodes beyond what float32 holds
        ((0.5, torch.tanh, lambda num_lanes: torch.zeros(num_lanes, 1, dtype=torch.long)), 0),
        ((0.5, torch.tanh, float_state, nn.BatchNorm1d(1)), 4),
    ],
    ids=["tanh", "exploding", "counts only", "buffers"],
)
def test_any_task_trains_on_as_it_was(cell, files, precision, tmp_path):
    data = Batches(list(Window(*torch.randn(2, LANES, 80, generator=torch.Generator().manual_seed(3))).pieces(5)), 3)
    ends = []
    for callbacks in ([], [GradientHorizon(4, 60), GradientHorizon(7)]):
        module = copy.deepcopy(Cell(*cell))
        fit(module, data, max_epochs=1, precision=precision, callbacks=callbacks, default_root_dir=tmp_path)
        ends.append([*module.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(list(tmp_path.glob("gradient_horizon/*"))) == files


def test_bad_settings_and_a_missing_matplotlib_are_named(monkeypatch):
    def refused(callback, message):
        with pytest.raises(InputError, match=message):
            fit(Regression(k1=4, k2=9), Batches([]), callbacks=[callback])

    refused(GradientHorizon(0), "GradientHorizon: every_n_steps=0: must be 1 or more")
    refused(GradientHorizon(tokens_back=8), "GradientHorizon: tokens_back=8: must be at least k2=9")
    monkeypatch.setattr("lit_tbptt.training.callbacks.gradient_horizon.find_spec", lambda name: None)
    refused(GradientHorizon(), "matplotlib, which is missing: pip install matplotlib")
