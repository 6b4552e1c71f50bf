"""A task of one's own on columns of a dataset, from the command line."""

import warnings

import pytest
import torch
import yaml
from command_line import curve, trained
from datasets import Dataset
from torch import nn

from lit_tbptt import LitTBPTT, RunFolder, SequenceLanesDataModule
from lit_tbptt.cli import LitCLI
from lit_tbptt.files.checkpoint import read_checkpoint

OPTIONS = [
    "--data.path=waves",
    "--data.inputs=[speed, angle]",
    "--data.targets=force",
    "--data.static=mass",
    "--data.num_lanes=3",
    "--data.windows_per_batch=2",
    "--data.normalize=true",
    "--model.k1=4",
    "--model.k2=6",
    "--trainer.max_epochs=-1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
RUN = RunFolder("runs/default/version_0")


class Wagon(LitTBPTT):
    """Predicts a force from a speed, an angle, and the mass."""

    def __init__(self, num_units: int = 5, **training):
        super().__init__(**training)
        self.save_hyperparameters({"num_units": num_units, **self.loop_settings})
        self.core, self.head = nn.GRU(2, num_units, batch_first=True), nn.Linear(num_units, 1)
        self.start = nn.Linear(1, num_units)

    def initial_state(self, num_lanes):
        return self.start.bias.expand(num_lanes, -1)

    def initial_state_of(self, static):
        return self.start(static[:, None].float())

    def predict_window(self, window, state):
        inputs = torch.stack([window.inputs["speed"], window.inputs["angle"]], -1)
        outputs, state = self.core(inputs, state[None].contiguous())
        return self.head(outputs)[..., 0], state[0]

    def outputs_loss(self, outputs, window):
        errors = (outputs - window.targets).square()[window.mask_or_ones()]
        return errors.sum(), errors.numel()


@pytest.fixture
def waves(tmp_path, monkeypatch):
    """A folder of parquet files with columns of lists."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(2)
    for split, number in (("train", 9), ("validation", 4), ("test", 3)):
        lengths = torch.randint(3, 15, (number,), generator=generator).tolist()
        rows = {"mass": lengths}
        for name in ("speed", "angle", "force"):
            rows[name] = [torch.randn(n, generator=generator).tolist() for n in lengths]
        Dataset.from_dict(rows).to_parquet(tmp_path / "waves" / f"{split}.parquet")


def run(*arguments):
    return LitCLI(Wagon, SequenceLanesDataModule, list(arguments))


def test_a_run_is_stopped_continued_and_tested(waves, capfd, caplog):
    run("fit", *OPTIONS, "--trainer.max_steps=17", "--run_name=whole")
    assert "9 sequences of" in caplog.text
    run("fit", *OPTIONS, "--trainer.max_steps=6")
    run("fit", "--ckpt_path=last", "--trainer.max_steps=17")
    whole, ours = RunFolder("runs/default/whole"), RUN
    expected, found = (read_checkpoint(folder.last)["state_dict"] for folder in (whole, ours))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert trained(curve(ours.path)) == trained(curve(whole.path))
    capfd.readouterr()
    run("test", "--ckpt_path=last")
    assert "loss" in capfd.readouterr().out


def test_a_run_is_continued_where_warnings_are_only_printed(waves):
    """As in a user's own process; a warning that is raised made jsonargparse try the next type."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        run("fit", *OPTIONS, "--trainer.max_steps=3")
        run("fit", "--ckpt_path=last", "--trainer.max_steps=5")
        run("test", f"--config={RUN.path}/config.yaml", f"--ckpt_path={RUN.path}")
    assert not [each for each in given if "serialize" in str(each.message)]
    assert yaml.safe_load((RUN.path / "config.yaml").read_text())["data"]["inputs"] == ["speed", "angle"]


@pytest.mark.slow
def test_a_run_whose_schedule_monitors_a_metric_is_continued_without_naming_it(waves):
    plateau = "--lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau"
    run("fit", *OPTIONS, "--trainer.max_steps=6", plateau, "--lr_scheduler.monitor=val/loss")
    run("fit", "--ckpt_path=last", "--trainer.max_steps=9")
    assert read_checkpoint(RUN.last)["global_step"] == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {3, 6, 9, 12}),  # epochs of 3 batches
        (["--trainer.val_check_interval=2"], {2, 4, 6, 8, 10, 12}),
        (["--trainer.val_check_interval=5"], {5, 10}),
        (["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=1"], {2, 5, 8, 11}),
    ],
)
def test_batches_between_validations_are_counted_across_epochs(options, expected, waves):
    steady = ["--data.shuffle=false", "--data.windows_per_batch=1", "--data.num_lanes=9", "--trainer.max_steps=9"]
    run("fit", *OPTIONS, *steady, *options)
    assert {int(row["step"]) for row in curve(RUN.path) if row.get("val/loss")} == {
        step for step in expected if step <= 9
    }
    run("fit", "--ckpt_path=last", *options[:1], "--trainer.max_steps=12")
    assert {int(row["step"]) for row in curve(RUN.path) if row.get("val/loss")} == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.inputs=[speed, angel]", " has no 'angel': its keys are ['mass', 'speed', 'angle', 'force']"),
        ("--data.targets=mass", "targets has () for the 4 time steps from 0 on"),
        ("--data.num_lanes=10", "error: data (train): num_lanes=10 over 9 sequences"),
        ("--data.inputs=speed,angle", "error: data (train): the dataset has no column 'speed,angle': its columns are"),
        ("--data.path=nowhere", "error: data.path='nowhere': no such file or folder here"),
        ("--data.burn_in=99", "error: data (train): burn_in=99: the longest sequence has"),
        ("--data.dtypes=float33", "error: data.dtypes='float33'"),
        ("--data.dtypes={fore: int64}", "error: data (train): dtypes: there is no leaf 'fore': item 0 has the keys"),
    ],
)
def test_mistakes_are_a_sentence(option, message, waves, capfd):
    with pytest.raises(SystemExit) as stopped:
        run("fit", *OPTIONS, option)
    assert message in capfd.readouterr().err + str(stopped.value)


def test_a_run_without_a_test_split_ends_with_its_validation(waves, tmp_path, capfd):
    (tmp_path / "waves" / "test.parquet").unlink()
    run("fit", *OPTIONS, "--trainer.max_steps=2")
    printed = capfd.readouterr().out
    assert "validation" in printed
    assert "continue:" in printed
