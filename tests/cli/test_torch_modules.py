"""TorchCore from the command line: torch's RNN, LSTM and GRU need no name again, other modules only Python can use."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from command_line import RUN, SMALL_RUN, last, refused

from lit_tbptt import InputError, LitLanguageModel, Stack, TorchCore
from lit_tbptt.cli import main
from lit_tbptt.cores.described import build, describe, texts_of_modules

SMALL = [each for each in SMALL_RUN if not each.startswith("--model.core")]
SIZES = [
    "--model.core.module.input_size=7",
    "--model.core.module.hidden_size=6",
    "--model.core.module.batch_first=true",
]
OWN = """
import torch


class Halving(torch.nn.Module):
    def __init__(self, size: int = 7) -> None:
        super().__init__()
        self.input_size = self.output_size = size

    def initial_state(self, num_lanes):
        return torch.zeros(num_lanes, self.input_size)

    def forward(self, inputs, state):
        outputs = []
        for x in inputs.unbind(1):
            state = (state + x) / 2
            outputs.append(state)
        return torch.stack(outputs, 1), state
"""


def fit(words_folder, module, *options):
    main([
        "fit", f"--data.path={words_folder}", *SMALL, "--data.tokenizer=word", "--lr_scheduler.num_steps=9",
        "--trainer.max_steps=2", "--model.core=TorchCore", f"--model.core.module={module}", *options,
    ])  # fmt: skip


@pytest.mark.parametrize("name", ["GRU", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RNN", "LSTM"))])
def test_torchs_modules_are_built_from_a_checkpoint_alone(name, words_folder, in_tmp_path, capsys):
    fit(words_folder, f"torch.nn.{name}", *SIZES, "--model.core.lane_axis=1")
    printed = dict(re.findall(r"^(write|continue): +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert "torch" not in "".join(printed.values())
    written = shlex.split(printed["write"])
    main([*written[written.index("generate") :], "--num_tokens=3"])
    assert capsys.readouterr().out
    continued = shlex.split(printed["continue"].replace(" N", " 4"))
    main(continued[continued.index("fit") :])
    assert last()["global_step"] == 4
    core = LitLanguageModel.load_from_checkpoint(RUN / "checkpoints" / "last.ckpt").language_model.core
    assert type(core.module) is getattr(torch.nn, name)
    assert (core.module.input_size, core.module.hidden_size, core.lane_axis) == (7, 6, 1)


def test_a_module_of_ones_own_is_said_to_need_python(words_folder, in_tmp_path, monkeypatch, capsys):
    Path("own_modules.py").write_text(OWN)
    monkeypatch.syspath_prepend(".")
    fit(words_folder, "own_modules.Halving")
    said = capsys.readouterr().out
    assert said.index("a checkpoint cannot build this module of TorchCore") < said.index("run folder: ")
    assert "\nwrite:" not in said
    advised = refused("fit", "--ckpt_path=last", "--trainer.max_steps=3").partition("name it: ")[2]
    assert advised == "--model.core.module own_modules.Halving"
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=3", *shlex.split(advised)])
    assert last()["global_step"] == 3
    continued = shlex.split(re.search(r"^continue: +(.*)$", said, re.MULTILINE)[1].replace(" N", " 4"))
    main(continued[continued.index("fit") :])
    assert last()["global_step"] == 4


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.RNN(3, 5, num_layers=2, nonlinearity="relu", bias=False, batch_first=True),
        torch.nn.LSTM(4, 6, dropout=0.25, num_layers=3, proj_size=2, batch_first=True),
        torch.nn.GRU(6, 7, batch_first=True),
    ],
)
def test_the_description_of_a_module_has_all_its_arguments(module):
    described = describe(Stack([TorchCore(module, lane_axis=1)]))
    assert texts_of_modules(described) == []
    (core,) = build(described).cores
    assert repr(core.module) == repr(module)
    assert core.lane_axis == 1


def test_a_function_for_the_initial_state_is_not_in_a_checkpoint():
    core = TorchCore(torch.nn.GRU(3, 5, batch_first=True), 1, initial_state=lambda lanes: torch.ones(1, lanes, 5))
    assert texts_of_modules(describe(core)) == ["GRU(3, 5, batch_first=True)"]
    with pytest.raises(InputError, match=r"core.*TorchCore.*GRU"):
        build(describe(core))
