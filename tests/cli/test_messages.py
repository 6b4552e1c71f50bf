"""How the command line ends: its message and its exit status."""

import errno

import pytest

from lit_tbptt.cli import main
from lit_tbptt.cli.messages import one_message
from lit_tbptt.errors import DivergenceError, InputError, SourceError

# Python prints what is no number, and exits with 1.
ENDS = {
    "a setting": (InputError("k1=0: must be 1 or more"), 2, "error: k1=0: must be 1 or more\n"),
    "data": (SourceError("a.txt: gone"), "stopped: a.txt: gone", ""),
    "the loss": (DivergenceError("the loss is nan"), "stopped: the loss is nan", ""),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "a"), "stopped: a: the disk is full", ""),
    "a file": (PermissionError(errno.EACCES, "Permission denied", "a"), "stopped: a: Permission denied", ""),
    "Ctrl-C": (KeyboardInterrupt(), 130, ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_was_given_is_refused_with_2_and_a_run_fails_with_1(case, capsys):
    error, status, message = ENDS[case]
    with pytest.raises(SystemExit) as stopped, one_message():
        raise error
    assert stopped.value.code == status
    assert capsys.readouterr().err == message


def test_no_command_is_refused_with_what_there_is(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    said = capsys.readouterr().err
    assert said.startswith("error: no command\n\nusage: ")
    assert "generate" in said
