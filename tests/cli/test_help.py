"""The help of fit and its like: the usual options a line each, and everything on request."""

import io
import re
from contextlib import redirect_stdout
from typing import Literal

import pytest
from oscillator import Oscillator, WavesData
from torch import nn

from lit_tbptt.cli import LitCLI, main
from lit_tbptt.cli.help import TRAINER

# Options of `fit` and how the short help shows them: with the default value, or the kind of value.
SHOWN = {
    "--data.path TEXT": "A file (text, parquet, JSON, CSV), a folder, or a name on the Hugging Face Hub.",
    "--data.tokenizer bpe": "byte, char, word, bpe, or a Hugging Face tokenizer's name, folder or tokenizer.json.",
    "--data.num_lanes 32": "Parallel sequences in training.",
    "--data.streaming false": "Whether the corpus is read as it is needed and never stored.",
    "--model.core LSTM": "The recurrent part: RNN, LSTM, GRU, or any RecurrentCore.",
    "--model.core.hidden_size 256": "Units per layer",
    "--model.core.num_layers 1": "Number of stacked layers.",
    "--model.head CLASS": "Another output layer than a linear one: Adaptive",
    "--model.k2 INT": "The horizon",
    "--model.dropout_over_time free": "Whether these draw a mask for every token (free), or one for a window (shared).",
    "--model.lr_interval step|epoch": "Whether the schedule counts optimizer steps or epochs.",
    "--optimizer AdamW": "Optimizer: a class of torch.optim, or a path. One of ASGD,",
    "--optimizer.lr 0.01": "learning rate",
    "--optimizer.betas '[0.9, 0.99]'": "coefficients",
    "--optimizer.fused true": "whether the fused implementation is used",
    "--lr_scheduler WarmupCosineLR": "Schedule: WarmupCosineLR,",
    "--lr_scheduler.num_steps INT": "Steps until the final rate.",
    "--checkpoint.every_n_minutes 10.0": "Minutes between two checkpoints. null: not by time.",
    "--ckpt_path PATH": "The checkpoint to continue or to evaluate: last, best",
    "--trainer.max_steps 4000": "Stop training after this number of steps.",
    "--trainer.callbacks CLASS": "Add a callback or list of callbacks.",
}
# What is left to the full help: Lightning's options that few need, linked ones, keywords of torch's classes.
NOT_SHOWN = ["--trainer.barebones", "--weights_only", "--model.optimizer", "--data.k1", "--optimizer.foreach"]


class Tuned(Oscillator):
    """A task whose options have no default, or are of a class.

    Args:
        kind: Which wave it is tuned to. Nothing else of it is looked at.
        gain: Louder, if `gain` is above 1. Left out: 1.
        drop: A part of the network.
        **training: The arguments of LitTBPTT, by name.
    """

    def __init__(
        self, kind: Literal["saw", "sine"], gain: float | None = None, drop: nn.Module | None = None, **training
    ):
        super().__init__(**training)


def shown(call, *arguments):
    """What a command prints, and its options with the first lines of their descriptions."""
    with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 0
    return out.getvalue(), dict(re.findall(r"^  (--\S+(?: '.*?'| \S+)?)\s+(\S.*)$", out.getvalue(), re.MULTILINE))


def options(text):
    return set(re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.]+)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def of_fit():
    return shown(main, ["fit", "--help"])


@pytest.fixture(scope="module")
def in_full():
    return shown(main, ["fit", "--help.all"])[0]


def test_an_option_is_a_line_with_its_default_and_its_choices(of_fit):
    text, found = of_fit
    for option, description in SHOWN.items():
        assert found[option].startswith(description), option
    assert {f"--trainer.{name}" for name in TRAINER} <= options(text)
    assert not options(text).intersection(NOT_SHOWN)
    assert "Adadelta, Adafactor, Adagrad, Adam, AdamW" in " ".join(text.split())
    assert len(text.splitlines()) < 120
    assert not re.findall(r"^  --(?!trainer).* \.\.\.$", text, re.MULTILINE)  # ours fit into a line each
    assert text.index("--data.path") < text.index("--trainer.max_steps") < text.index("--trainer.help")


def test_of_ours_none_is_left_out_and_the_rest_is_shown_on_request(of_fit, in_full):
    hidden = {each for each in options(in_full) - options(of_fit[0]) if not re.match(r"--trainer\.|.*\.help$", each)}
    assert hidden == {"--model", "--data", "--checkpoint", "--trainer", "--help", "--weights_only"}
    trainers = {each for each in options(in_full) if each.startswith("--trainer.") and not each.endswith(".help")}
    for asked in ("--trainer.help", "--help.trainer"):
        found = options(shown(main, ["fit", asked])[0])
        assert {each for each in found if not each.endswith(".help")} == {"--trainer", *trainers}
    assert "--trainer.barebones" in trainers
    assert "Windows that travel in one Lightning batch. It changes" in shown(main, ["fit", "--data.help"])[0]


def test_an_evaluation_shows_what_it_does_not_take_from_the_checkpoint():
    found = options(shown(main, ["validate", "--help"])[0])
    assert {"--ckpt_path", "--data.path", "--trainer.limit_val_batches", "--help.all"} <= found
    assert not [each for each in found if re.match("--(model|optimizer|init_from|verbose|trainer.max_steps)", each)]


def test_the_options_of_a_users_own_task_and_data_are_shown_by_their_docstrings():
    text, found = shown(LitCLI, Tuned, WavesData, ["fit", "--help"])
    assert "Sines with noise:\n  --data.num_lanes 3" in text
    assert found["--model.kind saw|sine"] == "Which wave it is tuned to. One of saw, sine."
    assert found["--model.gain FLOAT"] == "Louder, if gain is above 1. Left out: 1."
    assert found["--model.drop CLASS"] == "A part of the network."  # there are hundreds
    assert found["--optimizer.lr 0.001"] == "learning rate."
    assert found["--model.k1 64"].startswith("Time steps")
    text, _ = shown(LitCLI, Tuned, WavesData, ["--help"])
    assert re.search("fit +Train; continue a run.*validate +Evaluate", text, re.DOTALL)
    assert "--trainer" not in text
