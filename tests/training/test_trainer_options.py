"""Options and callbacks of Lightning's own, and what they count here (docs/trainer.md)."""

import csv
from pathlib import Path

import pytest
from command_line import SMALL_RUN

from lit_tbptt.cli import TextCLI

SMALL = [
    *SMALL_RUN,
    "--model.core=GRU",
    "--model.core.hidden_size=9",
    "--data.tokenizer=word",
    "--trainer.log_every_n_steps=1",
    "--lr_scheduler=null",
]
PER_EPOCH = ["--trainer.max_steps=-1", "--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"]
# 96 tokens in 3 lanes are 7 windows of at most 5 tokens, 4 batches; 35 validation tokens are 2 batches.


@pytest.fixture
def fit(words_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *options: TextCLI(["fit", f"--data.path={words_folder}", *SMALL, *options])


def rows(cli):
    return list(csv.DictReader((Path(cli.trainer.log_dir) / "metrics.csv").read_text().splitlines()))


def validations(cli):
    return [int(row["step"]) for row in rows(cli) if row["val/accuracy"]]


def test_fast_dev_run(fit):
    cli = fit("--trainer.fast_dev_run=true")
    assert cli.trainer.global_step == 1
    assert not Path("runs").exists()


def test_max_epochs(fit):
    cli = fit(*PER_EPOCH, "--trainer.max_epochs=3")
    assert (cli.trainer.global_step, validations(cli)) == (21, [7, 14, 21])


def test_limit_train_batches_starts_every_epoch_at_the_first_window(fit):
    cli = fit(*PER_EPOCH, "--trainer.max_epochs=3", "--trainer.limit_train_batches=2")
    assert (cli.trainer.global_step, validations(cli)) == (12, [4, 8, 12])
    assert cli.model.position.epoch == 3


def test_limit_val_batches(fit):
    cli = fit("--trainer.max_steps=8", "--trainer.val_check_interval=4", "--trainer.limit_val_batches=1")
    assert {row["val/num_targets"] for row in rows(cli) if row["val/accuracy"]} == {"20.0"}


@pytest.mark.slow
def test_val_check_interval_counts_batches(fit):
    assert validations(fit("--trainer.max_steps=14", "--trainer.val_check_interval=2")) == [4, 7, 11, 14]
    assert validations(fit(*PER_EPOCH, "--trainer.max_epochs=2", "--trainer.val_check_interval=0.5")) == [4, 7, 11, 14]


def test_overfit_batches(fit):
    cli = fit(*PER_EPOCH, "--trainer.max_epochs=4", "--trainer.overfit_batches=1")
    assert cli.trainer.global_step == 8


def test_max_time_stops_and_the_run_can_be_continued(fit):
    cli = fit("--trainer.max_steps=100000", "--trainer.max_time=00:00:00:01", "--trainer.val_check_interval=1000")
    step = cli.trainer.global_step
    assert 0 < step < 100000
    cli = TextCLI(["fit", "--ckpt_path=last", f"--trainer.max_steps={step + 3}", "--trainer.max_time=00:00:10:00"])
    assert cli.trainer.global_step == step + 3


def test_early_stopping(fit):
    cli = fit(
        "--trainer.max_steps=1000",
        "--trainer.val_check_interval=4",
        "--optimizer=SGD",
        "--optimizer.lr=0",
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/nats_per_token",
        "--trainer.callbacks.patience=2",
    )
    assert (cli.trainer.global_step, validations(cli)) == (21, [7, 14, 21])


def test_learning_rate_monitor_counts_optimizer_steps(fit):
    cli = fit(
        "--trainer.max_steps=14",
        "--trainer.val_check_interval=1000",
        "--trainer.callbacks=LearningRateMonitor",
        "--trainer.callbacks.logging_interval=step",
    )
    assert [int(row["step"]) for row in rows(cli) if row.get("lr-AdamW")] == list(range(14))


@pytest.mark.slow
def test_the_adaptive_horizon(fit):
    cli = fit(
        "--trainer.max_steps=14",
        "--model.state_drop_probability=0.1",
        "--trainer.callbacks+=AdaptiveHorizon",
        "--trainer.callbacks.max_relative_bias=0.5",
        "--trainer.callbacks.max_k2=9",
        "--trainer.callbacks.every_n_steps=6",
    )
    chosen = {int(row["step"]): float(row["horizon/k2"]) for row in rows(cli) if row["horizon/k2"]}
    assert list(chosen) == [6, 12]
    assert chosen[12] == cli.model.truncation.k2


@pytest.mark.slow
def test_the_gradient_horizon(fit):
    cli = fit(
        "--trainer.max_steps=14",
        "--model.k2=8",
        "--model.recompute_every=2",
        "--model.loss_reduction=sum",
        "--model.state_drop_probability=0.1",
        "--trainer.callbacks=GradientHorizon",
        "--trainer.callbacks.every_n_steps=6",
        "--trainer.callbacks.tokens_back=9",
    )
    drawn = [int(row["step"]) for row in rows(cli) if row["horizon/share_beyond_k2"]]
    assert drawn == [6, 12]
    assert (Path(cli.trainer.log_dir) / "gradient_horizon" / "step_12.png").stat().st_size > 5000


@pytest.mark.parametrize(("rule", "steps"), [("--model.windows_per_step=1", 14), ("--model.windows_per_step=2", 8)])
def test_a_schedule_without_an_end_ends_with_the_last_epoch(rule, steps, fit):
    schedule = ["--lr_scheduler=WarmupCosineLR", "--lr_scheduler.warmup_steps=0", "--lr_scheduler.final_ratio=0.1"]
    cli = fit(*PER_EPOCH, "--trainer.max_epochs=2", "--optimizer.lr=0.02", rule, *schedule)
    assert cli.trainer.estimated_stepping_batches == 8
    assert cli.model.estimated_steps() == cli.trainer.global_step == steps
    rates = [float(row["train/lr"]) for row in rows(cli) if row["train/lr"]]
    assert rates[steps // 2 - 1] == pytest.approx(0.02 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(0.02 * 0.1)
    assert rates[-2] > rates[-1]
