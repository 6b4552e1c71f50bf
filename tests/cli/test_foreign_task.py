"""LitCLI for a task and a data module that are not of this package."""

import signal
from pathlib import Path

import oscillator
import pytest
import torch
import yaml
from command_line import curve, refusal_of, trained
from oscillator import Oscillator, WavesData
from processes import run_script, start, status_of

from lit_tbptt import RunFolder
from lit_tbptt.cli import LitCLI
from lit_tbptt.files.checkpoint import read_checkpoint

OPTIONS = [
    "--model.hidden_size=7",
    "--model.k1=4",
    "--model.k2=9",
    "--model.clip_norm=0.5",
    "--optimizer=SGD",
    "--optimizer.lr=0.05",
    "--lr_scheduler=ExponentialLR",
    "--lr_scheduler.gamma=0.9",
    "--model.lr_interval=step",
    "--data.num_lanes=5",
    "--checkpoint.every_n_steps=4",
    "--trainer.max_steps=30",
    "--trainer.max_epochs=-1",
    "--trainer.log_every_n_steps=3",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
RUN = RunFolder("runs/default/version_0")


def refused(*arguments):
    return refusal_of(LitCLI, Oscillator, WavesData, list(arguments))


@pytest.fixture
def killed(in_tmp_path):
    """A run that was killed after step 19, of which step 16 was saved."""
    killer = ["--trainer.callbacks=oscillator.SignalAt", "--trainer.callbacks.step=19"]
    process = start(run_script, oscillator.__file__, "fit", *OPTIONS, *killer, log="log")
    assert status_of(process) == -signal.SIGKILL, Path("log").read_text()
    assert read_checkpoint(RUN.last)["global_step"] == 16


@pytest.mark.slow
def test_a_foreign_task_is_killed_and_continued_to_the_same_bits(killed, tmp_path, monkeypatch, capfd):
    LitCLI(Oscillator, WavesData, ["fit", "--ckpt_path=last"])
    printed = capfd.readouterr().out
    found, rows = read_checkpoint(RUN.last), trained(curve(RUN.path))
    assert [path.name for path in RUN.path.parent.iterdir()] == ["version_0"]
    assert yaml.safe_load(RUN.config(16).read_text())["model"]["k2"] == 9
    for text in ("loss", "validation", "run folder: runs/default/version_0", "fit --ckpt_path runs/default/version_0"):
        assert text in printed
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    LitCLI(Oscillator, WavesData, ["fit", *OPTIONS])
    expected = read_checkpoint(RUN.last)
    assert (found["global_step"], found["epoch"]) == (expected["global_step"], expected["epoch"]) == (30, 1)
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)
    assert rows == trained(curve(RUN.path))
    assert [float(row["train/lr"]) for row in rows[:2]] == pytest.approx([0.05 * 0.9**3, 0.05 * 0.9**6])


def test_a_signal_saves_and_stops_and_what_a_resume_cannot_keep_is_said(in_tmp_path):
    stopping = [
        "--trainer.callbacks=oscillator.SignalAt",
        "--trainer.callbacks.step=7",
        "--trainer.callbacks.name=SIGTERM",
    ]
    with pytest.raises(SystemExit) as stopped:
        LitCLI(Oscillator, WavesData, ["fit", *OPTIONS, *stopping])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert read_checkpoint(RUN.last)["global_step"] == 8  # the next boundary
    assert "k1=5, where the run to be resumed has k1=4" in refused("fit", "--ckpt_path=last", "--model.k1=5")
    message = refused("fit", "--ckpt_path=last", "--model.hidden_size=8")
    assert "the weights of the checkpoint are not those of this model: size mismatch" in message
    LitCLI(Oscillator, WavesData, ["fit", "--ckpt_path=last", "--trainer.max_steps=10"])
    assert read_checkpoint(RUN.last)["global_step"] == 10


def test_it_has_what_the_command_line_has_for_text(in_tmp_path, capfd):
    LitCLI(Oscillator, WavesData, ["fit", *OPTIONS, "--trainer.val_check_interval=3", "--run_name=mine"])
    mine = RunFolder("runs/default/mine")
    assert {path.name for path in mine.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert any(row.get("val/loss") for row in curve(mine.path))
    capfd.readouterr()
    LitCLI(Oscillator, WavesData, ["validate", "--ckpt_path=best"])
    assert "loss" in capfd.readouterr().out
    assert "k2=2 with k1=4" in refused("fit", *OPTIONS, "--model.k2=2")
    assert "trainer.gradient_clip_val=1" in refused("fit", *OPTIONS, "--trainer.gradient_clip_val=1")
    assert "needs a checkpoint" in refused("validate")
    assert not Path("runs/default/version_0").exists()  # a refused start leaves nothing behind
    LitCLI(
        Oscillator,
        WavesData,
        ["fit", *OPTIONS, f"--init_from={mine.last}", "--optimizer.lr=0", "--trainer.max_steps=1"],
    )
    for name, value in read_checkpoint(mine.last)["state_dict"].items():
        assert torch.equal(read_checkpoint(RUN.last)["state_dict"][name], value)


def test_a_data_module_may_have_splits_of_its_own(in_tmp_path, capfd):
    class Divided(WavesData):
        splits = {"train": 0.8, "val": 0.2}  # noqa: RUF012 - as users write it

    LitCLI(Oscillator, Divided, ["fit", *OPTIONS, "--trainer.max_steps=4"])
    assert "validation" in capfd.readouterr().out
