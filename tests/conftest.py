import os
import tempfile

# Before anything imports datasets: no test reaches the Hub, none touches the user's caches.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lit_tbptt_tests_")
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # as the command line does
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

from jaxtyping import install_import_hook

# The modules whose arguments are tensors: their shapes are checked in every test.
install_import_hook([f"lit_tbptt.{name}" for name in ("cores", "models", "tbptt.state")], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

pytest.register_assert_rewrite("command_line", "resuming")  # they assert for the tests

from command_line import FIRST_RUN  # noqa: E402

torch.set_num_threads(1)


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
