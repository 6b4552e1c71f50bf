"""How far gradients reach, as numbers and as pictures; and that looking at them changes nothing."""

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tasks import Batches, Recurrence, Regression
from test_cores import Leaky
from test_lit_module import LANES, fit
from test_resume import curve, everything, per_step, same
from test_resume import fit as fit_text
from torch.testing import assert_close

from lit_tbptt import LSTM, InputError, RecurrentLM, Window
from lit_tbptt.callbacks import GradientHorizon
from lit_tbptt.horizon import gradient_norms, measure
from lit_tbptt.metrics import summed_nats
from lit_tbptt.tbptt import Carry


class Task(RecurrentLM):
    def window_loss(self, window, state):
        logits, state = self(window.inputs, state)
        return *summed_nats(logits, window.targets, window.mask), state

    def advance(self, window, state):
        return self.run_core(window.inputs, state)[1]


def test_the_norms_of_a_recurrence_are_the_powers_of_its_weight():
    inputs = torch.randn(LANES, 23, dtype=torch.float64)
    record = Carry({"h": torch.randn(LANES, 1, dtype=torch.float64)}, (Window(inputs, inputs),))
    norms = gradient_norms(Recurrence(0.7), record, 20)
    assert_close(norms, 0.7 ** torch.arange(1, 22, dtype=torch.float64), rtol=0, atol=1e-12)
    found = measure(norms, 9)
    assert found.ratio_per_token == pytest.approx(0.7, abs=1e-9)
    assert found.norm_at_0 == pytest.approx(0.7, abs=1e-9)
    assert found.tokens_to_1_percent == 13  # .7 ** 13 < .01 < .7 ** 12
    assert found.share_beyond_k2 == pytest.approx((0.7**8 - 0.7**21) / (1 - 0.7**21), abs=1e-9)
    assert measure(torch.tensor([1.0, 2.0, 4.0]), 3).ratio_per_token == pytest.approx(2)
    assert measure(torch.tensor([1.0, 2.0, 4.0]), 3).tokens_to_1_percent is None


def test_the_norms_of_an_lstm_are_those_of_autograd_one_state_at_a_time():
    model = Task(11, LSTM(5, 2, input_size=7)).double()
    windows = [Window(*torch.randint(11, (2, LANES, 4))) for _ in range(3)]
    windows[1] = windows[1]._replace(reset=torch.tensor([False, True, False]))
    windows[2] = windows[2]._replace(mask=torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]]))
    state = {name: torch.randn(LANES, 2, 5, dtype=torch.float64) for name in ("hidden", "cell")}
    norms = gradient_norms(model, Carry(state, tuple(windows)), 9)
    steps = [step for window in windows for step in window.pieces(1)]
    for back in range(10):
        here = state
        for place, step in enumerate(steps):
            if place == 11 - back:
                here = {name: leaf.detach().requires_grad_() for name, leaf in here.items()}
                given = list(here.values())
            if step.reset is not None:
                here = {name: leaf * ~step.reset[:, None, None] for name, leaf in here.items()}
            loss, _, here = model.window_loss(step, here)
        hidden, cell = torch.autograd.grad(loss, given)
        lanes = (hidden.square().sum((1, 2)) + cell.square().sum((1, 2))).sqrt()
        assert (lanes[1] == 0) == (back >= 7)
        assert norms[back].item() == pytest.approx(lanes[:2].mean().item(), abs=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_state_may_hold_counts_too():
    class Mean:
        core = Leaky()

        def initial_state(self, num_lanes):
            return self.core.initial_state(num_lanes)

        def advance(self, window, state):
            return self.core(window.inputs, state)[1]

        def window_loss(self, window, state):
            outputs, state = self.core(window.inputs, state)
            return outputs[:, :, 0].sum(), window.num_steps, state

    inputs = torch.randn(LANES, 6, 7)
    norms = gradient_norms(Mean(), Carry(Mean().initial_state(LANES), (Window(inputs, inputs),)), 4)
    assert_close(norms.float(), 0.7 ** torch.arange(1, 6))


OPTIONS = {"every_n_steps": 3, "tokens_back": 10}


def test_training_is_what_it_would_be_without(tmp_path):
    class Gradients(Callback):
        def __init__(self):
            self.kept = []

        def on_window_end(self, trainer, module, window):
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
    # Steps 1 to 7 are the first epoch, and step 8 starts the second one afresh: nothing reaches back beyond it.
    assert [float(row[1]) > 0 for row in rows[1:]] == [True] * 7 + [False] * 4


@pytest.mark.parametrize("stop", [4, 5, 8, 11])
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


def test_bad_settings_and_a_missing_matplotlib_are_named(monkeypatch):
    with pytest.raises(InputError, match="GradientHorizon: every_n_steps=0"):
        GradientHorizon(0)
    with pytest.raises(InputError, match="GradientHorizon: tokens_back=-1"):
        GradientHorizon(tokens_back=-1)
    monkeypatch.setattr("lit_tbptt.callbacks.gradient_horizon.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"matplotlib, which is missing: pip install 'lit_tbptt\[plot\]'"):
        GradientHorizon()
