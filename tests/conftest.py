import atexit
import os
import random
import shutil
import sys
import tempfile

CACHES, OWNER = tempfile.mkdtemp(prefix="lit_tbptt_tests_"), os.getpid()
# Before anything imports datasets: no test reaches the Hub, none touches the user's caches.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = CACHES
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = CACHES
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # as the command line does
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# Help and reports are compared as text, and local servers are asked: whatever the user's terminal and proxy.
os.environ["COLUMNS"] = "120"
os.environ.pop("FORCE_COLOR", None)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"

# beartype takes random.getrandbits when it is imported, to choose the items of containers that it looks at. The state
# of Python's global generator is what tests compare, so beartype gets a generator of its own.
assert "beartype" not in sys.modules
of_python, random.getrandbits = random.getrandbits, random.Random(1).getrandbits
import beartype  # noqa: E402, F401

random.getrandbits = of_python

import argument_checks  # noqa: E402

argument_checks.install("cores", "models", "tbptt", "ranks")  # the modules whose arguments are tensors

import pytest  # noqa: E402
import torch  # noqa: E402

pytest.register_assert_rewrite("command_line", "resuming")  # they assert for the tests

import lightning.pytorch  # noqa: E402, F401 - what processes.py forks from has it
from command_line import FIRST_RUN  # noqa: E402
from leftovers import _nothing_is_left  # noqa: E402, F401 - a fixture of every test

from lit_tbptt import Batch, Carry, TruncatedLoss, Window, WindowLoss  # noqa: E402
from lit_tbptt.cli import TextCLI  # noqa: E402, F401 - and all that it imports, for processes.py to fork from
from lit_tbptt.tbptt.run import RunLoss  # noqa: E402
from lit_tbptt.tbptt.update import Updated  # noqa: E402

torch.set_num_threads(1)


@atexit.register
def pytest_unconfigure():
    """Leaves no file. Workers of pytest-xdist never come to `atexit`; processes to fork from know no pytest."""
    if os.getpid() == OWNER:  # and none of the processes that were forked, which share it
        shutil.rmtree(CACHES, ignore_errors=True)


argument_checks.check_constructors(Batch, Carry, RunLoss, TruncatedLoss, Updated, Window, WindowLoss)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(1)


@pytest.fixture
def words_folder(tmp_path):
    """A folder with train, valid and test files of lines: 83, 29 and 31 words, blank lines among them."""
    folder = tmp_path / "words"
    folder.mkdir()
    for name, count in (("train", 83), ("valid", 29), ("test", 31)):
        words = [f"w{(i * i + 3 * i) % 11}" for i in range(count)]
        lines = [" ".join(words[i : i + 7]) for i in range(0, count, 7)]
        lines.insert(3, "")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """The test's own folder is the current one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def first_run(words_folder, in_tmp_path):
    """The arguments of a first run of 20 steps, in a folder of its own."""
    return ["fit", f"--data.path={words_folder}", *FIRST_RUN]
