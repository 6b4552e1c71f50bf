"""Cores that the command line refuses, with the class, the argument or the method that is wrong."""

import json
from pathlib import Path

import pytest
from command_line import refused

OWN = """
from lit_tbptt import Cell


class Leaky(Cell):
    def initial_state(self, num_lanes):
        return None

    def step(self, x, state):
        return x, state


class NoState(Cell):
    def step(self, x, state):
        return x, state
"""
NO_CLASS = "a class is given by its name, or by {class_path: LSTM, init_args: {hidden_size: 12}}, without other keys"
# Options after --model.core, and what the message says after model.core.
REFUSED = {
    "no initial state": (["=own_cells.NoState"], "='own_cells.NoState': it does not define initial_state;"),
    "a base class": (["=Cell"], "='Cell': it does not define initial_state and step;"),
    "a misspelt class of a module": (
        ["=own_cells.Lleaky"],
        "='own_cells.Lleaky': module 'own_cells' has no attribute 'Lleaky'; did you mean own_cells.Leaky?",
    ),
    "arguments by the name of a class": (['={"LSTM": {"hidden_size": 12}}'], f": {NO_CLASS}"),
    "an argument of awd-lstm-lm": (
        ["=AWDLSTM", "--model.core.wdrop=0.5"],
        ".wdrop: lit_tbptt.AWDLSTM has no such argument; did you mean weight_drop?",
    ),
    "a literal": (["=Stack", '--model.core.cores=["LSTM"]', "--model.core.skip=dens"],
                  ".skip='dens': must be none or residual or dense"),
}  # fmt: skip
# Values of Stack's argument `cores`.
CORES = {
    "beside class_path": ([{"class_path": "LSTM", "hidden_size": 12}], f".cores: {NO_CLASS}"),
    "without class_path": ([{"LSTM": {"hidden_size": 12}}], f".cores: {NO_CLASS}"),
    "a number": ([3], f".cores: {NO_CLASS}"),
    "no list": ({"class_path": "LSTM"}, ".cores=\"{'class_path': 'LSTM'}\": must be a list"),
    "arguments in a list": ([{"class_path": "LSTM", "init_args": [3]}], ".cores: init_args must be arguments by name"),
    "an abstract class": (["own_cells.NoState"], ".cores='own_cells.NoState': it does not define initial_state;"),
}


@pytest.fixture
def own_cells(in_tmp_path, monkeypatch):
    Path("own_cells.py").write_text(OWN)
    monkeypatch.syspath_prepend(".")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_core(case, own_cells):
    options, message = REFUSED[case]
    said = refused("fit", "--trainer.accelerator=cpu", f"--model.core{options[0]}", *options[1:])
    assert said.startswith(f"error: model.core{message}")
    assert "null" not in said


@pytest.mark.parametrize("case", CORES)
def test_what_is_wrong_with_a_core_within_a_stack(case, own_cells):
    value, message = CORES[case]
    said = refused("fit", "--trainer.accelerator=cpu", "--model.core=Stack", f"--model.core.cores={json.dumps(value)}")
    assert said.startswith(f"error: model.core{message}")
    assert "null" not in said
    Path("my.yaml").write_text(
        json.dumps({"model": {"core": {"class_path": "Stack", "init_args": {"cores": value}}}}, indent=1)
    )
    said = refused("fit", "--trainer.accelerator=cpu", "--config=my.yaml")
    assert said.startswith("error: my.yaml, line ")
    assert message in said


def test_arguments_of_a_class_in_a_list(own_cells):
    Path("my.yaml").write_text("model:\n  core:\n    class_path: Stack\n    init_args:\n    - LSTM\n")
    said = refused("fit", "--config=my.yaml")
    assert said.startswith("error: my.yaml, line 2: model.core: init_args must be arguments by name, as in {class_path")


def test_the_help_of_a_class_does_not_list_all_modules_of_torch(own_cells, capsys):
    from lit_tbptt.cli import main

    with pytest.raises(SystemExit):
        main(["fit", "--model.core.help=TorchCore"])
    said = capsys.readouterr().out
    assert "--model.core.lane_axis" in said
    assert "torch.nn.Conv1d" not in said
    assert len(said.splitlines()) < 80
