"""The layers of the package, and a twin of the check that shows it can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLANTED = {
    "none": None,
    "upwards": ("tbptt/state.py", "from lit_tbptt import models"),
    "between siblings": ("models/metrics.py", "from lit_tbptt import data"),
    "lightning below": ("tbptt/truncation.py", "import lightning"),
    "a file on no floor": ("helpers.py", ""),
}


@pytest.mark.parametrize("violation", PLANTED)
def test_a_file_imports_only_from_floors_below(violation, tmp_path):
    shutil.copytree(ROOT / "lit_tbptt", tmp_path / "lit_tbptt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if PLANTED[violation]:
        name, line = PLANTED[violation]
        with open(tmp_path / "lit_tbptt" / name, "a") as file:
            file.write(line + "\n")
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == (violation == "none"), result.stdout + result.stderr


def test_every_file_is_short_enough_to_be_read():
    lengths = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("lit_tbptt/**/*.py")}
    assert max(lengths.values()) < 300, lengths
