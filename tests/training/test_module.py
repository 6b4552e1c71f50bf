"""Training through the Trainer equals a loop written out: steps, schedules, validation, precision, checkpoints."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from loops import LANES, STEPS, batches, by_hand, fit, pair, same_weights, sequence
from tasks import Regression, windows_of
from torch.testing import assert_close

from lit_tbptt import DivergenceError, InputError, LitTBPTT, WarmupCosineLR


@pytest.mark.parametrize("windows_per_batch", [1, 3, 8])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_the_loop_equals_one_written_by_hand(windows_per_batch, clip_norm):
    model, expected = pair(k1=5, clip_norm=clip_norm, lr=0.1)
    resets = [(4, 1), (7, 0)]
    fit(model, batches(5, windows_per_batch, resets=resets))
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5, resets), 2, clip_norm))


@pytest.mark.parametrize("max_steps", [1, 7, 13, 14, 20])
def test_max_steps_counts_optimizer_steps_even_inside_a_batch(max_steps):
    model, expected = pair(k1=5, lr=0.1)
    trainer = fit(model, batches(5, 4), max_epochs=-1, max_steps=max_steps)
    assert trainer.global_step == max_steps
    windows = windows_of(*sequence(), 5) * 2
    same_weights(model, by_hand(expected, windows[:max_steps], 1))


def test_a_schedule_per_step():
    rates = [0.1 * 0.9**step for step in range(26)]
    model, expected = pair(
        k1=5,
        lr=0.1,
        schedule=lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
            "interval": "step",
        },
    )
    fit(model, batches(5, 4))
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5), 2, rates=rates))


def test_a_schedule_per_epoch():
    rates = [0.1] * 13 + [0.05] * 13
    model, expected = pair(
        k1=5, lr=0.1, schedule=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    )
    fit(model, batches(5, 4))
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5), 2, rates=rates))


def test_a_schedule_on_a_monitored_metric():
    rates = []

    class Seen(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = Regression(
        k1=5,
        lr=0.1,
        schedule=lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=1, factor=0.1),
            "monitor": "val/loss",
        },
    )
    fit(model, batches(5), batches(5), max_epochs=5, callbacks=[Seen()])
    # The loss falls, so under mode="max" the third validation in a row is one too many.
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01])
    missing = Regression(
        k1=5,
        schedule=lambda optimizer: {
            "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            "monitor": "val/none",
        },
    )
    with pytest.raises(InputError, match=r"monitor='val/none'.*there are .*val/loss"):
        fit(missing, batches(5), batches(5))


def test_validation_leaves_training_alone():
    class Checked(Callback):
        def on_validation_start(self, trainer, pl_module):
            self.before = pl_module.carry.state.clone(), torch.get_rng_state()

        def on_validation_end(self, trainer, pl_module):
            assert torch.equal(self.before[0], pl_module.carry.state)
            assert torch.equal(self.before[1], torch.get_rng_state())

    with_it, without = pair(k1=5, lr=0.1)
    fit(with_it, batches(5), batches(7), val_check_interval=4, callbacks=[Checked()])
    fit(without, batches(5))
    same_weights(with_it, without)


def test_validation_carries_its_state_and_means_over_targets():
    model = Regression(k1=5).double()
    inputs, targets = sequence()
    expected, count, _ = model.window_loss(windows_of(inputs, targets, STEPS)[0], model.initial_state(LANES))
    for k1, windows_per_batch in ((65, 1), (7, 3), (2, 4)):
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            precision="64-true",
        )
        trainer.validate(model, batches(k1, windows_per_batch), verbose=False)
        assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected.item() / count, abs=1e-6)


def test_what_is_logged_has_steps_and_tokens(tmp_path):
    logger = CSVLogger(tmp_path, "run", "0", flush_logs_every_n_steps=1)
    fit(Regression(k1=5), batches(5, 4), max_epochs=1, logger=logger, log_every_n_steps=4)
    rows = (tmp_path / "run" / "0" / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    table = [dict(zip(names, row.split(","), strict=True)) for row in rows[1:]]
    assert [(int(row["step"]), int(row["tokens"])) for row in table] == [(4, 60), (8, 120), (12, 180), (13, 195)]
    assert all(float(row["train/loss"]) > 0 and float(row["train/tokens_per_second"]) > 0 for row in table)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(bad):
    inputs, targets = sequence()
    targets[1, 37] = bad  # in window 8 of 5 steps
    with pytest.raises(DivergenceError, match=r"at optimizer step 8, with a learning rate of about 0\.01; no checkp"):
        fit(Regression(k1=5), batches(5, 4, (inputs, targets)), log_every_n_steps=6)


def test_no_checkpoint_is_written_of_a_loss_that_is_no_number(tmp_path):
    class Saving(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=False)

    inputs, targets = sequence()
    targets[1, 37] = math.nan
    with pytest.raises(DivergenceError, match="optimizer step 8"):
        fit(Regression(k1=5), batches(5, 1, (inputs, targets)), log_every_n_steps=50, callbacks=[Saving()])
    assert sorted(int(path.stem) for path in tmp_path.iterdir()) == list(range(1, 8))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"k2": 13}, {"k2": 13, "recompute_every": 4}])
def test_bf16_follows_float32(options):
    data = tuple(part.float() for part in sequence())
    full, half = pair(k1=5, lr=0.1, **options)
    start = {name: value.clone() for name, value in full.state_dict().items()}
    fit(full, batches(5, 2, data), precision="32-true")
    fit(half, batches(5, 2, data), precision="bf16-mixed")
    for name, value in full.state_dict().items():
        moved = (value - start[name]).norm()
        assert 0 < (half.state_dict()[name] - value).norm() < 0.1 * moved


def half_precision():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**9))


def test_under_fp16_the_unscaled_gradient_is_clipped():
    norms = {}

    class Norms(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in module.parameters()])
            norms.setdefault(name, []).append(norm.item())

    data = tuple(part.float() for part in sequence())
    for clip_norm in (None, 0.05):
        for bits, options in (
            ("32", {"precision": "32-true"}),
            ("16", {"precision": None, "plugins": [half_precision()]}),
        ):
            name = f"{bits} {clip_norm}"
            torch.manual_seed(2)
            fit(Regression(k1=5, clip_norm=clip_norm), batches(5, 2, data), callbacks=[Norms()], **options)
    assert max(norms["32 None"]) > 0.2
    assert norms["16 None"] == pytest.approx(norms["32 None"], rel=0.05)
    assert max(norms["16 0.05"]) <= 0.0501
    assert norms["16 0.05"] == pytest.approx(norms["32 0.05"], rel=0.01)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bits", ["bf16", "fp16"])
def test_a_fused_optimizer_steps_by_the_clipped_gradient_in_mixed_precision(bits, fused):
    """With SGD the step is the gradient times the learning rate, so its norm tells how the gradient was clipped."""
    steps = []

    class Fused(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, fused=fused)

    class Steps(Callback):
        def on_train_batch_start(self, trainer, module, *args):
            self.before = [parameter.detach().clone() for parameter in module.parameters()]

        def on_train_batch_end(self, trainer, module, *args):
            moved = [after - before for after, before in zip(module.parameters(), self.before, strict=True)]
            steps.append(torch.nn.utils.get_total_norm([part.detach() for part in moved]).item() / 0.1)

    data = tuple(part.float() for part in sequence())
    plugin = {"bf16": {"precision": "bf16-mixed"}, "fp16": {"precision": None, "plugins": [half_precision()]}}[bits]
    fit(Fused(k1=5, clip_norm=0.05), batches(5, 1, data), callbacks=[Steps()], **plugin)
    assert len(steps) == 26
    assert max(steps) == pytest.approx(0.05, rel=1e-3)
    assert min(steps) > 0


def test_any_module_is_loaded_from_a_checkpoint_and_resumed(tmp_path):
    module, whole = pair(k1=5, lr=0.1)
    trainer = fit(module, batches(5, 4), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    loaded = Regression.load_from_checkpoint(tmp_path / "one.ckpt", k1=5, lr=0.1)
    assert_close(dict(loaded.state_dict()), dict(module.float().state_dict()))
    fit(whole, batches(5, 4))
    again = Regression(k1=5, lr=0.1)
    fit(again, batches(5, 4), resume=tmp_path / "one.ckpt")
    same_weights(again, whole)


def test_data_that_cannot_start_inside_an_epoch_are_refused_there(tmp_path):
    trainer = fit(Regression(k1=5), batches(5, 4), max_steps=6, max_epochs=-1)
    trainer.save_checkpoint(tmp_path / "inside.ckpt", weights_only=False)
    with pytest.raises(InputError, match="written inside an epoch, and the training data, a Batches, cannot start"):
        fit(Regression(k1=5), batches(5, 4), resume=tmp_path / "inside.ckpt")


def test_bad_settings_are_refused():
    for options, message in (
        ({"k1": 0}, "k1=0"),
        ({"k1": 5, "k2": 3}, "k2=3 with k1=5"),
        ({"clip_norm": 0.0}, r"clip_norm=0\.0"),
    ):
        with pytest.raises(InputError, match=message):
            LitTBPTT(**options)
    with pytest.raises(NotImplementedError, match="initial_state"):
        LitTBPTT().initial_state(3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(InputError, match="warmup_steps=-1"):
        WarmupCosineLR(optimizer, warmup_steps=-1)


@pytest.mark.parametrize("options", [{"barebones": True}, {"log_every_n_steps": 0}])
def test_a_run_that_logs_nothing(options):
    module, quiet = pair(k1=5, lr=0.1)
    settings = {"max_epochs": 2, "accelerator": "cpu", "precision": "64-true"}
    if "barebones" not in options:
        settings |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(**settings, **options).fit(quiet, batches(5, 4))
    fit(module, batches(5, 4))
    same_weights(quiet, module)


def test_validate_and_test_return_what_they_have_measured():
    module = Regression(k1=5)
    trainer = fit(module, batches(5), max_epochs=1)
    for name, evaluate in (("val", trainer.validate), ("test", trainer.test)):
        (metrics,) = evaluate(module, batches(5), verbose=False)
        assert metrics == {f"{name}/loss": trainer.callback_metrics[f"{name}/loss"]}
        assert metrics[f"{name}/loss"] > 0


def test_several_loaders_are_refused():
    message = "where a Batch of windows is expected: give one iterable of Batch"
    with pytest.raises(InputError, match=f"the data give a dict {message}"):
        fit(Regression(k1=5), {"a": batches(5), "b": batches(5)})
    with pytest.raises(InputError, match=f"the data give a list {message}"):
        fit(Regression(k1=5), [batches(5), batches(5)])


class Stacking(Regression):
    """Its state grows, but not in training."""

    def predict_window(self, window, state):
        return window.inputs, torch.cat([state, state], -1)

    def window_loss(self, window, state):
        loss, num_targets, after = super().window_loss(window, state)
        return loss, num_targets, after if self.training else torch.cat([after, after], -1)


@pytest.mark.parametrize("run", [Trainer.validate, Trainer.predict])
def test_a_state_that_grows_in_evaluation_is_refused(run):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", precision="64-true", **quiet)
    with pytest.raises(InputError, match=r"Stacking was given a state of \(3, 7\) and returned \(3, 14\): its shape"):
        run(trainer, Stacking(hidden=7, k1=5), batches(5))
