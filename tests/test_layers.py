"""The layers of the package, and a twin of the check that shows it can fail."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NO_LIGHTNING = ("Only training and cli know Lightning", "Commands below training know no Lightning")
# What is appended to which file, and the contracts that it breaks.
PLANTED = {
    "nothing": ("errors.py", "", ()),
    "upwards": ("tbptt/state.py", "from lit_tbptt import models", ("Layers",)),
    "between siblings": ("models/metrics.py", "from lit_tbptt import data", ("Layers",)),
    "a file in no layer": ("helpers.py", "", ("Layers",)),
    "training, upwards": ("training/position.py", "from lit_tbptt.training import module", ("Inside training",)),
    "training, siblings": (
        "training/language_model.py",
        "from lit_tbptt.training import callbacks",
        ("Inside training",),
    ),
    "training, a file in no layer": ("training/helpers.py", "", ("Inside training",)),
    "lightning below": ("tbptt/truncation.py", "import lightning", NO_LIGHTNING),
    "generate, lightning": ("cli/generate.py", "import lightning", NO_LIGHTNING[1:]),
    "score, training": ("cli/text_files.py", "from lit_tbptt.training import loggers", NO_LIGHTNING[1:]),
    "plot, torch": ("cli/curves.py", "import torch", ("plot knows no torch",)),
    "plot's parser, torch": ("cli/parser_errors.py", "from torch.optim import Optimizer", ("plot knows no torch",)),
}


@pytest.mark.parametrize("violation", PLANTED)
def test_a_folder_imports_only_from_folders_below(violation, tmp_path):
    shutil.copytree(ROOT / "lit_tbptt", tmp_path / "lit_tbptt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    name, line, contracts = PLANTED[violation]
    with open(tmp_path / "lit_tbptt" / name, "a") as file:
        file.write(line + "\n")
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    broken = re.findall(r"^(.+?)(?:: .*)? BROKEN$", result.stdout, re.MULTILINE)
    assert broken == list(contracts), result.stdout + result.stderr
    assert (result.returncode == 0) == (not contracts)


def test_only_two_folders_may_know_lightning():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (forbidden,) = [contract for contract in contracts if contract["name"] == NO_LIGHTNING[0]]
    parts = {path.stem for path in (ROOT / "lit_tbptt").iterdir() if path.stem not in ("__init__", "__pycache__")}
    below = parts - {"__main__", "cli", "training"}
    assert {name.removeprefix("lit_tbptt.") for name in forbidden["source_modules"]} == below


def test_every_file_is_short_enough_to_be_read():
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.glob("lit_tbptt/**/*.py")}
    assert max(lengths.values()) < 300, lengths
