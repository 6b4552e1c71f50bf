"""Where runs lie, and that a start that fails leaves nothing behind."""

from pathlib import Path

import pytest
from command_line import FIRST_RUN, RUN, SMALL_RUN, refused
from lightning.pytorch.cli import SaveConfigCallback
from oscillator import Oscillator, WavesData

from lit_tbptt.cli import LitCLI, TextCLI, main


def files():
    return sorted(str(path) for path in Path("runs").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data.path=nowhere"],
        ["--model.core.hidden_size=0"],
        ["--optimizer.lr=-1"],
        ["--trainer.accelerator=tpuu"],
        ["--trainer.devices=0"],
        ["--data.num_lanes=5000"],
    ],
    ids=lambda options: options[0],
)
def test_a_start_that_is_refused_leaves_no_folder(wrong, words_folder, in_tmp_path):
    said = refused("fit", f"--data.path={words_folder}", *FIRST_RUN, "--trainer.max_steps=2", *wrong)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert not Path("runs").exists()


def test_what_lightning_says_in_a_run_is_one_message(first_run):
    said = refused(*first_run, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=nothing")
    assert said.startswith("error: Early stopping conditioned on metric")
    assert "\n" not in said


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(first_run):
    main(first_run)
    before = files()
    for change in (["--data.num_lanes=2"], ["--optimizer=SGD"], ["--model.k1=6"], ["--model.core.hidden_size=10"]):
        refused("fit", "--ckpt_path=last", "--trainer.max_steps=30", *change)
        assert files() == before


@pytest.mark.parametrize("callback", [None, SaveConfigCallback])
def test_a_run_that_is_stopped_keeps_its_checkpoints_whatever_saves_its_settings(callback, in_tmp_path):
    signal_at = ["--trainer.callbacks=oscillator.SignalAt", "--trainer.callbacks.step=3"]
    stopping = [*signal_at, "--trainer.callbacks.name=SIGTERM", "--trainer.max_steps=9"]
    with pytest.raises(SystemExit, match="143"):
        LitCLI(Oscillator, WavesData, args=["fit", *stopping], save_config_callback=callback)
    assert (RUN / "checkpoints" / "last.ckpt").exists()


def test_without_loggers_a_run_has_its_folder_and_a_users_file_stays(words_folder, in_tmp_path):
    Path("config.yaml").write_text("model:\n  k1: 5\n")
    options = ["--config=config.yaml", "--trainer.logger=false", "--trainer.max_steps=3"]
    main(["fit", f"--data.path={words_folder}", *SMALL_RUN, *options])
    assert Path("config.yaml").read_text() == "model:\n  k1: 5\n"
    assert not Path("checkpoints").exists()
    assert files() == [
        "runs/config/version_0/checkpoints/last.ckpt",
        "runs/config/version_0/config.yaml",
    ]


def test_a_users_logger_is_beside_the_runs_own(first_run):
    options = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mine", "--trainer.max_steps=3"]
    cli = TextCLI([*first_run, *options])
    assert (RUN / "metrics.csv").exists()
    assert (RUN / "checkpoints" / "last.ckpt").exists()
    assert list(Path("mine").rglob("metrics.csv"))
    assert len(cli.trainer.loggers) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (["--runs_dir=here"], "here/default/version_0"),
        (["--trainer.default_root_dir=there"], "there/runs/default/version_0"),
        (["--trainer.default_root_dir=there", "--runs_dir=here", "--run_name=a"], "here/default/a"),
    ],
)
def test_runs_lie_where_they_are_wanted(options, folder, first_run):
    main([*first_run, *options, "--trainer.max_steps=2"])
    assert (Path(folder) / "checkpoints" / "last.ckpt").exists()
    assert not Path("runs").exists()
    place = [option for option in options if "run_name" not in option]
    main(["fit", "--ckpt_path=last", *place, "--trainer.max_steps=3"])
    main(["test", f"--ckpt_path={folder}", "--trainer.accelerator=cpu"])  # a run's folder is its newest checkpoint


def test_a_runs_name_is_no_path(first_run):
    assert "run_name='../x': must be the name of a folder" in refused(*first_run, "--run_name=../x")


def test_a_run_without_a_step_says_so(first_run, capfd):
    main([*first_run, "--trainer.limit_train_batches=0"])
    assert "nothing was trained: see trainer.max_steps, max_epochs, max_time and limit_train_batches" in (
        capfd.readouterr().out
    )
