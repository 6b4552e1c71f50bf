"""AdaptiveHorizon: the k2 that it chooses, when it is set, and what is logged, saved and refused."""

import logging
import runpy

import pytest
import torch
from command_line import curve
from lightning.pytorch import Callback, Trainer, seed_everything
from loops import LANES, fit
from processes import TESTS
from resuming import K1, everything, fit_text, per_step, same
from tasks import Batches, Regression
from torch import nn

from lit_tbptt import AdaptiveHorizon, InputError, LitTBPTT, Window

OPTIONS = {"max_relative_bias": 0.3, "max_k2": 9, "every_n_steps": 5, "num_places": 2}


class Horizons(Callback):
    """Keeps the k2 that every window was run with."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(module.truncation.k2)


class Decay(LitTBPTT):
    """h = w h + x with a w that stays: the norms of d loss / d h are w, w ** 2, ..."""

    def __init__(self, w, **options):
        super().__init__(**options)
        self.w, self.offset = w, nn.Parameter(torch.zeros(1))

    def initial_state(self, num_lanes):
        return self.offset.new_zeros(num_lanes, 1)

    def window_loss(self, window, state):
        total = 0
        for x in window.inputs.unbind(1):
            state = self.w * state + x[:, None]
            total = total + (state + self.offset).sum()
        return total, window.targets.numel(), state

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def horizons(module, num_steps=60, **options):
    inputs = torch.randn(LANES, num_steps)
    windows, seen = list(Window(inputs, inputs).pieces(module.truncation.k1)), Horizons()
    fit(module, Batches(windows), max_epochs=1, callbacks=[AdaptiveHorizon(**options), seen])
    return seen.seen


@pytest.mark.parametrize(
    ("w", "limit", "k2"),
    [(0.5, 0.3, 3), (0.5, 0.2, 4), (0.8, 0.3, 7), (0.8, 0.05, 15), (-0.8, 0.3, 7), (0.99, 0.3, 25), (1.1, 0.3, 25)],
)
def test_the_least_horizon_is_found_from_1_upwards(w, limit, k2):
    """Without the end of the curve: the least k2 with w ** (k2 - 1) < limit."""
    seen = horizons(Decay(w, k1=1), max_relative_bias=limit, max_k2=25, every_n_steps=5, num_places=3)
    measured = 1 + 25 + 1 + 2 * 8  # the first window's carry, and three curves of 26 norms, 8 apart
    assert seen == [1] * measured + [k2] * (60 - measured)


def test_it_stays_within_its_limits():
    options = {"every_n_steps": 2, "num_places": 1, "tokens_back": 6}
    assert horizons(Decay(0.5, k1=1), max_relative_bias=0.3, min_k2=5, **options)[-1] == 5
    assert horizons(Decay(0.5, k1=4), max_relative_bias=0.3, max_k2=9, **options)[-1] == 5
    assert horizons(Decay(0.5, k1=4), max_relative_bias=0.9, max_k2=9, **options)[-1] == 4
    # Longer than what is measured: .8 ** (k2 - 1) / (1 - 2 * .8 ** 7) < .05
    assert horizons(Decay(0.8, k1=1), max_relative_bias=0.05, **options)[-1] == 17
    assert horizons(Decay(0.8, k1=1, k2=33), max_relative_bias=0.05, **options)[-1] == 17


def test_it_starts_within_its_limits():
    options = {"max_relative_bias": 0.3, "every_n_steps": 1000, "min_k2": 5, "max_k2": 9}
    assert horizons(Decay(0.5, k1=1), **options) == [5] * 60
    assert horizons(Decay(0.5, k1=1, k2=33), **options) == [9] * 60
    assert horizons(Decay(0.5, k1=1, k2=7), **options) == [7] * 60


def test_there_is_one():
    both = [AdaptiveHorizon(), AdaptiveHorizon(0.2)]
    with pytest.raises(InputError, match=r"AdaptiveHorizon is in trainer\.callbacks more than once"):
        fit(Decay(0.5, k1=1), Batches([]), callbacks=both)


def test_a_horizon_that_is_not_found_is_reported(caplog):
    caplog.set_level(logging.INFO, "lightning.pytorch")
    horizons(Decay(1.1, k1=1), max_k2=9, every_n_steps=20, num_places=1)
    assert (
        "step 20: beyond the measured tokens gradients may still be large (x 1.100 per token): k2 = 9"
        in caplog.messages
    )
    horizons(Decay(0.8, k1=1), max_k2=9, every_n_steps=20, num_places=1, tokens_back=30)
    assert "step 32: the relative bias at max_k2 is 0.17, above 0.1: k2 = 9" in caplog.messages


def test_it_is_logged_and_changes_nothing_else(tmp_path):
    class Chosen(Callback):
        """Sets what the callback has set, and measures nothing."""

        def on_step_end(self, trainer, module):
            module.truncation.k2 = chosen.get(trainer.global_step, module.truncation.k2)

    folder = tmp_path / "with" / "v"
    measured = everything(*fit_text(folder, 4, per_step, k2=7, callbacks=[AdaptiveHorizon(**OPTIONS)])[:2])
    rows = [row for row in curve(folder) if row.get("horizon/k2")]
    chosen = {int(row["step"]): int(row["horizon/k2"]) for row in rows}
    assert len(chosen) > 1
    assert len(set(chosen.values()) | {7}) > 1
    assert all(K1 <= k2 <= 9 for k2 in chosen.values())
    assert all(0 <= float(row["horizon/relative_bias"]) < 0.3 for row in rows if int(row["horizon/k2"]) < 9)
    same(everything(*fit_text(tmp_path / "without" / "v", 4, per_step, k2=7, callbacks=[Chosen()])[:2]), measured)


@pytest.mark.parametrize("stop", [2, 5, 8, 11])
def test_a_resumed_run_chooses_the_same(stop, tmp_path):
    def run(name, max_steps=-1, resume=None):
        folder = tmp_path / name / "v"
        callbacks = [AdaptiveHorizon(**OPTIONS)]
        end = fit_text(folder, 4, per_step, max_steps, resume, k2=7, callbacks=callbacks)[:2]
        return everything(*end), curve(folder), end[1].truncation.k2

    whole = run("whole")
    run("parts", stop)
    parts = run("parts", resume=tmp_path / "parts" / "v" / "checkpoints" / "last.ckpt")
    same(parts[0], whole[0])
    assert parts[1:] == whole[1:]


def test_what_was_chosen_and_not_yet_set_is_saved():
    """As when a callback before it saves at the end of the same step."""
    callback = AdaptiveHorizon(**OPTIONS)
    callback._next_k2 = 9
    resumed, module = AdaptiveHorizon(**OPTIONS), Regression(k1=4, k2=7)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[resumed])
    resumed.setup(trainer, module, "fit")
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_start(trainer, module)
    assert module.truncation.k2 == 9


@pytest.mark.slow
def test_the_lag_of_3_of_the_echo_task_is_found(monkeypatch):
    """From k2 = 1, with which nothing better than .6616 nats can be learned; lag 3 alone gives .5192."""
    echo = runpy.run_path(str(TESTS.parent / "examples" / "echo.py"))
    seed_everything(1, verbose=False)
    callback = AdaptiveHorizon(0.5, max_k2=12, every_n_steps=50)
    data, valid = echo["Echoes"](60, 1000, 1, 1), echo["Echoes"](60, 500, 1, 2)
    module = echo["Echo"](1, None, True)
    trainer = fit(module, data, valid, max_epochs=1, precision="32-true", callbacks=[callback])
    assert 4 <= module.truncation.k2 < 12
    assert trainer.callback_metrics["val/loss"] < 0.56


def test_bad_settings_are_named():
    def refused(message, **options):
        with pytest.raises(InputError, match=message):
            fit(Regression(k1=4), Batches([]), callbacks=[AdaptiveHorizon(**options)])

    refused("AdaptiveHorizon: max_relative_bias=0: must be above 0", max_relative_bias=0)
    refused("AdaptiveHorizon: min_k2=0: must be 1 or more", min_k2=0)
    refused("AdaptiveHorizon: max_k2=3: must be at least k1=4", max_k2=3)
    refused("AdaptiveHorizon: max_k2=8: must be at least min_k2=9", min_k2=9, max_k2=8)
    refused("AdaptiveHorizon: every_n_steps=0: must be 1 or more", every_n_steps=0)
    refused("AdaptiveHorizon: num_places=0: must be 1 or more", num_places=0)
    refused("AdaptiveHorizon: tokens_back=1: must be 2 or more", tokens_back=1)
    with pytest.raises(InputError, match=r"AdaptiveHorizon with carry_state=False: .* k2 stays k1"):
        fit(Regression(k1=4, carry_state=False), Batches([]), callbacks=[AdaptiveHorizon()])
