"""Small runs from the command line, and what a run leaves: its curve and its last checkpoint."""

import csv
from contextlib import redirect_stderr
from io import StringIO
from itertools import chain
from pathlib import Path

import pytest
import torch

from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint

# A run of some seconds on the words_folder of conftest.py.
SMALL_RUN = [
    "--model.core.hidden_size=9",
    "--model.k1=5",
    "--data.num_lanes=3",
    "--data.windows_per_batch=2",
    "--data.eval_num_lanes=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
]
# Twenty steps of it: what `first_run` of conftest.py adds to its data.
FIRST_RUN = [
    *SMALL_RUN,
    "--model.core=GRU",
    "--model.core.hidden_size=9",
    "--model.output_dropout=0.2",
    "--data.tokenizer=word",
    "--trainer.log_every_n_steps=3",
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=4",
    "--lr_scheduler.num_steps=40",
]
RUN = Path("runs/default/version_0")


def refused(*arguments):
    return refusal_of(main, list(arguments))


def refusal_of(command, *arguments, **options):
    """Returns the message of a command that is refused, or of a run that fails."""
    with redirect_stderr(StringIO()) as said, pytest.raises(SystemExit) as stopped:
        command(*arguments, **options)
    if isinstance(stopped.value.code, str):  # Python prints it, and exits with 1
        return stopped.value.code
    assert stopped.value.code == 2
    return said.getvalue()[said.getvalue().rindex("error: ") :].removesuffix("\n")


def curve(run=RUN):
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if v and k != "train/tokens_per_second"}
        for row in rows
        if not any(v for k, v in row.items() if k.startswith("test/"))
    ]


def trained(rows):
    return [row for row in rows if "train/lr" in row]


def last():
    return read_checkpoint(RUN / "checkpoints" / "last.ckpt")


def equal(found, expected):
    assert found["lit_tbptt"]["position"] == expected["lit_tbptt"]["position"]
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)
    states = ([process["carry"]["state"] for process in run["lit_tbptt"]["ranks"]] for run in (found, expected))
    for mine, other in zip(*map(chain.from_iterable, states), strict=True):
        assert torch.equal(mine, other)
