"""Cores that are made of cores, from the command line: given, continued, written with, and refused."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from command_line import curve, equal, refused, trained

from lit_tbptt import LitLanguageModel
from lit_tbptt.cli import main
from lit_tbptt.cli.settings import foreign_classes
from lit_tbptt.files.checkpoint import read_checkpoint

RUN = [
    "--model.k1=5",
    "--data.num_lanes=3",
    "--data.windows_per_batch=2",
    "--data.eval_num_lanes=2",
    "--data.tokenizer=word",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=3",
    "--trainer.val_check_interval=4",
    "--lr_scheduler.num_steps=20",
]
OWN = "from lit_tbptt import GRU\n\n\nclass Own(GRU):\n    pass\n"


def cores(*described):
    return [{"class_path": name, "init_args": arguments} for name, arguments in described]


def as_json(*described):
    return f"--model.core.cores={json.dumps(cores(*described))}"


def stacked(*arguments):
    """The options of a small stack, in a YAML file."""
    core = {"class_path": "Stack", "init_args": {"cores": cores(*arguments), "skip": "dense", "dropout": 0.3}}
    core["init_args"]["dropout_over_time"] = "shared"
    Path("stack.yaml").write_text(yaml.safe_dump({"model": {"core": core}}))


@pytest.mark.slow
def test_a_stack_from_a_file_is_resumed_evaluated_exported_and_started_from(words_folder, in_tmp_path, capfd):
    stacked(("LSTM", {"hidden_size": 9, "input_size": 8}), ("CoupledLSTM", {"hidden_size": 5, "input_size": 17}))
    begin = ["fit", f"--data.path={words_folder}", *RUN, "--config=stack.yaml"]
    main([*begin, "--run_name=whole", "--trainer.max_steps=9"])
    main([*begin, "--run_name=parts", "--trainer.max_steps=5"])
    main(["fit", "--config=stack.yaml", "--ckpt_path=last", "--run_name=parts", "--trainer.max_steps=9"])
    whole, parts = (Path("runs/stack") / name for name in ("whole", "parts"))
    assert trained(curve(parts)) == trained(curve(whole))
    equal(read_checkpoint(parts / "checkpoints/last.ckpt"), read_checkpoint(whole / "checkpoints/last.ckpt"))
    model = LitLanguageModel.load_from_checkpoint(whole / "checkpoints/last.ckpt")
    core = model.language_model.core
    assert (core.skip, core.dropout_over_time, core.input_size, core.output_size) == ("dense", "shared", 8, 14)
    main(["export", f"--ckpt_path={whole}/checkpoints/last.ckpt", "model"])
    capfd.readouterr()
    texts = []
    for given in (f"{whole}/checkpoints/last.ckpt", "model"):
        main(["generate", f"--ckpt_path={given}", "--num_tokens=9"])
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != ""
    main([*begin[:-1], f"--init_from={whole}/checkpoints/last.ckpt", "--run_name=new", "--trainer.max_steps=1"])
    saved = read_checkpoint("runs/default/new/checkpoints/last.ckpt")["hyper_parameters"]["core"]
    assert saved == model.hparams["core"]


@pytest.mark.slow
def test_the_commands_that_a_run_with_a_core_of_ones_own_prints_can_be_given(
    words_folder, in_tmp_path, monkeypatch, capfd
):
    Path("own_in_a_stack.py").write_text(OWN)
    monkeypatch.syspath_prepend(Path.cwd())
    given = as_json(("LSTM", {"hidden_size": 9}), ("own_in_a_stack.Own", {"hidden_size": 9}))
    main(["fit", f"--data.path={words_folder}", *RUN, "--model.core=Stack", given, "--trainer.max_steps=2"])
    printed = dict(re.findall(r"^(write|continue): +(.*)$", capfd.readouterr().out, re.MULTILINE))
    written = shlex.split(printed["write"])
    main([*written[written.index("generate") :], "--num_tokens=3"])
    assert capfd.readouterr().out
    continued = shlex.split(printed["continue"].replace(" N", " 4"))
    main(continued[continued.index("fit") :])
    assert read_checkpoint("runs/default/version_0/checkpoints/last.ckpt")["global_step"] == 4
    said = refused("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert "is not imported just because the checkpoint names it" in said
    named = shlex.split(said.partition("name it: ")[2])
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=6", *named])
    assert read_checkpoint("runs/default/version_0/checkpoints/last.ckpt")["global_step"] == 6
    assert "--core own_in_a_stack.Own" in refused("generate", "--ckpt_path=last")


SIZED = ("LSTM", {"hidden_size": 9, "input_size": 8})
REFUSED = {
    "none": ([], "model.core: lit_tbptt.Stack needs cores; give --model.core.cores"),
    "an empty list": (["--model.core.cores=[]"], "model.core.cores=[]: at least one is needed"),
    "no such class": (["--model.core.cores=[lstm,GRU]"], "model.core.cores='lstm': no such class; did you mean LSTM?"),
    "no such argument": (
        [as_json(SIZED, ("SRU", {"hiden_size": 9}))],
        "model.core.cores.hiden_size: lit_tbptt.SRU has no such argument; did you mean hidden_size?",
    ),
    "another type": (
        [as_json(SIZED, ("SRU", {"hidden_size": "x"}))],
        "model.core.cores.hidden_size='x': must be a whole number",
    ),
    "an argument within": (
        [as_json(SIZED, ("GRU", {"hidden_size": 9, "dropout": 3.5}))],
        "model.core.cores.dropout=3.5: must be at least 0 and below 1",
    ),
    "an argument of its own": ([as_json(SIZED), "--model.core.dropout=2"], "model.core.dropout=2.0: must be at least"),
    "sizes": (
        [as_json(SIZED, ("SRU", {"hidden_size": 7}))],
        "model.core.cores: with skip='none' their input_size must be 8, 9, and is 8, 7;",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_the_option(case, in_tmp_path):
    given, message = REFUSED[case]
    assert refused("fit", "--trainer.accelerator=cpu", "--model.core=Stack", *given).startswith(f"error: {message}")


def test_the_classes_that_must_be_named_again_are_found_within_others():
    nested = {"class_path": "lit_tbptt.Stack", "init_args": {"cores": cores(("mine.A", {}), ("lit_tbptt.GRU", {}))}}
    own = {"class_path": "mine.B", "init_args": {"size": 3}}
    model = {"core": nested, "head": own, "k1": 5, "names": ["x.y"]}
    assert foreign_classes({"model": model, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {}}}) == {
        "model.core": json.dumps(nested),
        "model.head": "mine.B",
    }


def test_a_list_on_the_command_line_is_built_class_by_class(words_folder, in_tmp_path):
    given = ["--model.core=Stack", "--model.core.cores+=RNN", "--model.core.cores.hidden_size=7"]
    given += ["--model.core.cores+=SRU", "--model.core.cores.hidden_size=7", "--model.core.skip=residual"]
    main(["fit", f"--data.path={words_folder}", *RUN, *given, "--trainer.max_steps=1"])
    core = LitLanguageModel.load_from_checkpoint("runs/default/version_0/checkpoints/last.ckpt").language_model.core
    assert [type(each).__name__ for each in core.cores] == ["RNN", "SRU"]
    assert core.skip == "residual"
    assert core.one.equal(torch.ones(()))
