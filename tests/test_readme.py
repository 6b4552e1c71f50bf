"""Everything that the README shows is run, and the programs of some documents."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from lit_tbptt.cli import main
from lit_tbptt.cli.commands import COMMANDS as COMMANDS_ALONE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)
DOCUMENTS = ("sequences", "echo_state")
# Those of a document are parts of one program.
PYTHON = [
    *SNIPPET.findall(README),
    *("\n".join(SNIPPET.findall((ROOT / "docs" / f"{name}.md").read_text())) for name in DOCUMENTS),
]
COMMANDS = re.findall(r"^python train\.py (.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("snippet", PYTHON, ids=["language model", "any task", "pieces", "core", *DOCUMENTS])
def test_the_snippets_run(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(snippet, {"__name__": "snippet"})


@pytest.fixture(scope="module")
def after_a_run(tmp_path_factory):
    """A folder like a clone in which the default job has run, on less data."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "text.txt").write_text("def f(x):\n    return x\n" * 40)
    (folder / "my_texts").mkdir()
    (folder / "my_texts" / "test.txt").write_text("def g(x):\n    return x\n" * 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--data.path=text.txt", "--data.num_lanes=2", "--data.eval_num_lanes=2", "--trainer.max_steps=2"])
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command, after_a_run, monkeypatch, capfd):
    monkeypatch.chdir(after_a_run)
    arguments = shlex.split(command)
    if arguments[0] in COMMANDS_ALONE:  # they take no time
        main(arguments)
        assert capfd.readouterr().out
        return
    if not any("help" in argument for argument in arguments):
        arguments.append("--print_config")
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, None)
    assert capfd.readouterr().out


def test_the_two_commands_are_one_line_each():
    lines = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert [line.split("&& ")[-1] for line in lines] == [
        ".venv/bin/python train.py fit",
        '.venv/bin/python -m pytest -n 2 -m "not slow"',
    ]
