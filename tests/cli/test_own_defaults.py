"""The class that is chosen has its own defaults, not those of the class it is chosen over."""

from pathlib import Path

import pytest
import yaml

from lit_tbptt.cli import main

SGD_IN_A_FILE = {"optimizer": {"class_path": "SGD", "init_args": {"lr": 20.0}}}


@pytest.mark.parametrize(
    ("options", "file", "optimizer"),
    [
        ([], None, ("AdamW", {"lr": 1e-2, "weight_decay": 0.01, "fused": True})),  # the default job
        (["--data.path=texts"], None, ("AdamW", {"lr": 4e-3, "weight_decay": 0.01, "fused": True})),
        (["--optimizer.lr=1e-4"], None, ("AdamW", {"lr": 1e-4, "weight_decay": 0.01, "fused": True})),
        (["--optimizer=AdamW"], None, ("AdamW", {"lr": 1e-3, "weight_decay": 0.01, "fused": True})),
        (["--optimizer=AdamW", "--optimizer.fused=false"], None, ("AdamW", {"weight_decay": 0.01, "fused": False})),
        (["--optimizer=SGD"], None, ("SGD", {"lr": 1e-3, "weight_decay": 0, "fused": True})),
        (["--optimizer=SGD", "--optimizer.foreach=true"], None, ("SGD", {"foreach": True, "fused": None})),
        (["--optimizer.foreach=true"], None, ("AdamW", {"lr": 1e-2, "foreach": True, "fused": None})),
        (["--optimizer", "Adam", "--optimizer.lr", "2e-3"], None, ("Adam", {"lr": 2e-3, "weight_decay": 0})),
        (["--optimizer.class_path=torch.optim.Adam"], None, ("Adam", {"lr": 1e-3, "weight_decay": 0, "fused": True})),
        (["--optimizer=RMSprop"], None, ("RMSprop", {"lr": 1e-2, "weight_decay": 0})),
        ([], SGD_IN_A_FILE, ("SGD", {"lr": 20.0, "weight_decay": 0, "fused": True})),
        (["--optimizer.momentum=0.9"], SGD_IN_A_FILE, ("SGD", {"lr": 20.0, "momentum": 0.9, "weight_decay": 0})),
    ],
)
def test_an_optimizer_has_its_own_defaults(options, file, optimizer, in_tmp_path, capsys):
    if file is not None:
        Path("my.yaml").write_text(yaml.safe_dump(file))
        options = ["--config=my.yaml", *options]
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *options, "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)["optimizer"]
    name, expected = optimizer
    assert parsed["class_path"] == f"torch.optim.{name}"
    assert {key: parsed["init_args"][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("options", "dynamic"),
    [([], True), (["--data.split_salt=x"], True), (["--trainer.max_steps=48"], False), (["--model.k1=8"], False)],
)
def test_the_default_jobs_dynamic_evaluation_is_for_its_model(options, dynamic, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *options, "--print_config"])
    assert (yaml.safe_load(capsys.readouterr().out)["model"]["evaluation"] is not None) == dynamic


def test_a_core_and_a_schedule_have_theirs(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.core=RNN", "--lr_scheduler=LinearLR", "--print_config"])
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["model"]["core"]["init_args"]["input_size"] is None
    assert set(parsed["lr_scheduler"]["init_args"]) == {"start_factor", "end_factor", "total_iters", "last_epoch"}


CLOSURES = [["--optimizer=LBFGS"], ["--optimizer", "lit_tbptt.HessianFree"], ["--config=my.yaml"]]


@pytest.mark.parametrize("optimizer", CLOSURES)
def test_an_optimizer_that_searches_has_no_schedule_and_no_clipping(optimizer, in_tmp_path, capsys):
    Path("my.yaml").write_text("optimizer:\n  class_path: torch.optim.LBFGS\n")
    for options in ([], ["--lr_scheduler=ConstantLR"]):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", *optimizer, *options, "--print_config"])
        parsed = yaml.safe_load(capsys.readouterr().out)
        assert parsed["model"]["clip_norm"] is None
        assert (parsed["lr_scheduler"] is None) == (not options)
