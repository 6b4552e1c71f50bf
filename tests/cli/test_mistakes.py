"""What new users get wrong, as `benchmarks/mistakes.py` found it."""

from pathlib import Path

import pytest
from command_line import refused

# Options that other training scripts have, and what the message names instead.
ELSEWHERE = {
    "--batch_size=32": "--data.num_lanes",
    "--lr=0.1": "--optimizer.lr",
    "--learning-rate=0.1": "--optimizer.lr",
    "--epochs=3": "--trainer.max_epochs",
    "--max_steps=3": "--trainer.max_steps",
    "--gpus=1": "--trainer.devices",
    "--trainer.gpus=1": "--trainer.devices",
    "--seed=7": "--seed_everything",
    "--bptt=35": "--model.k1",
    "--seq_len=35": "--model.k1",
    "--hidden_size=9": "--model.core.hidden_size",
    "--model.hidden_size=9": "--model.core.hidden_size",
    "--output_dir=out": "--runs_dir",
    "--resume=last": "--ckpt_path",
    "--clip=1": "--model.clip_norm",
    "--data.batch_size=8": "--data.num_lanes",
}


@pytest.mark.parametrize("given", ELSEWHERE)
def test_an_option_of_another_library_is_explained_by_ours(given, in_tmp_path):
    name = given.split("=")[0]
    assert refused("fit", given) == f"error: {name}: there is no such option; did you mean {ELSEWHERE[given]}?"


# Values that a constructor refuses, and what the message says.
REFUSED_BY_CLASSES = {
    "--model.core.hidden_size=0": "error: model.core.hidden_size=0: must be 1 or more",
    "--model.core.dropout=2": "error: model.core.dropout=2.0: must be at least 0 and below 1",
    "--seed_everything=-3": "error: seed_everything=-3: must be from 0 to 4294967295",
    "--trainer.devices=all": "error: trainer.devices=all: `devices` selected with `CPUAccelerator` should be an int",
    "--trainer.min_steps=6000": "error: trainer.min_steps=6000 with trainer.max_steps=4000: must not be above it",
    "--trainer.max_time=1h": "error: trainer.max_time='1h': must be days:hours:minutes:seconds",
    "--model.k1=0": "error: model.k1=0: a window holds at least one time step",
    "--model.k2=3": "error: model.k2=3 with k1=64: the horizon must cover the window",
    "--model.clip_norm=-1": "error: model.clip_norm=-1.0: must be above 0",
    "--trainer.logger=WandbLogger": "error: trainer.logger=WandbLogger: Requirement 'wandb",
}


@pytest.mark.parametrize("given", REFUSED_BY_CLASSES)
def test_what_a_constructor_refuses_is_said_with_the_options_name(given, in_tmp_path):
    said = refused("fit", "--trainer.accelerator=cpu", given)
    assert said.startswith(REFUSED_BY_CLASSES[given])
    assert "Union" not in said
    assert "Namespace" not in said


# Options of classes and groups, and what the message says.
GROUPS = {
    "--model=LSTM": "model='LSTM': this names a group of options, or a file of them; did you mean --model.core?",
    "--data=words": "data='words': this names a group of options, or a file of them; did you mean --data.path?",
    "--model.core=lstm": "model.core='lstm': no such class; did you mean LSTM?",
    "--trainer.logger=tensorboard": "trainer.logger='tensorboard': no such class; did you mean TensorBoardLogger?",
    "--optimizer=sgd": "optimizer='sgd': no such class; did you mean SGD?",
    "--optimizer.learning_rate=1": "optimizer.learning_rate: torch.optim.AdamW has no such argument; did you mean lr?",
    "--model.core.nhid=9": "model.core.nhid: lit_tbptt.LSTM has no such argument; did you mean hidden_size?",
}


@pytest.mark.parametrize("given", GROUPS)
def test_what_is_given_to_a_group_or_a_class(given, in_tmp_path):
    assert refused("fit", given).startswith(f"error: {GROUPS[given]}")


def test_a_core_that_cannot_be_used_is_refused_with_the_reason(in_tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(".")
    Path("cores_of_a_user.py").write_text("class NoCore:\n    pass\n")
    Path("half_a_module.py").write_text("class Half(\n")
    for core, reason in (
        ("cores_of_a_user.NoCore", "Import path does not correspond to a subclass of RecurrentCore"),
        ("cores_of_a_user.None_", "module 'cores_of_a_user' has no attribute 'None_'"),
        ("half_a_module.Half", "'(' was never closed (half_a_module.py, line 1)"),
        ("no_such_module.Core", "No module named 'no_such_module'"),
    ):
        assert refused("fit", f"--model.core={core}") == f"error: model.core={core!r}: {reason}"


def test_a_folder_is_no_configuration(in_tmp_path):
    Path("settings").mkdir()
    assert "settings is a folder, not a file" in refused("fit", "--config=settings")
