"""The examples are whole programs: they are run as a user runs them, on little data."""

import ast
import json
import random
import re
from pathlib import Path

import pytest
from processes import run_script, start, status_of

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    status = status_of(start(run_script, EXAMPLES / name, *arguments, log="log"))
    printed = Path("log").read_text()
    assert status == 0, printed
    return printed


@pytest.mark.parametrize("options", [(), ("--k1", "2", "--k2", "9"), ("--carry_state", "false")])
def test_echo(options, in_tmp_path):
    found = run("echo.py", "--num_lanes", 11, "--num_time_steps", 333, *options)
    assert 0.4 < float(re.search(r"^(0\.\d+) nats per step\n\Z", found, re.MULTILINE)[1]) < 0.75


def test_chorales(tmp_path, in_tmp_path):
    """Pieces that repeat a few chords are learnt; a blank mind would need 88 ln 2 = 61 nats a chord."""
    generator = random.Random(3)
    chords = [[60, 64, 67], [], [59, 62, 67, 79], [21], [108, 60]]
    pieces = {
        split: [[chords[(start + i) % 5] for i in range(generator.randrange(7, 40))] for start in range(count)]
        for split, count in (("train", 23), ("valid", 5), ("test", 4))
    }
    (tmp_path / "pieces.json").write_text(json.dumps(pieces))
    options = ("--k1", 6, "--k2", 15, "--hidden_size", 17, "--num_lanes", 3, "--num_epochs", 4)
    found = ast.literal_eval(run("chorales.py", tmp_path / "pieces.json", *options).splitlines()[-1])
    assert found.keys() == {"valid", "test"}
    assert max(found.values()) < 15


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short(example):
    assert len(example.read_text().splitlines()) < 120
