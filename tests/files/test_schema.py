"""What stands in a checkpoint, and what is refused because something else does."""

import typing
from pathlib import Path

import pytest
import torch
from command_line import RUN, last, refused

from lit_tbptt import InputError, LitLanguageModel, RunFolder
from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint, write_checkpoint
from lit_tbptt.files.schema import VERSION, RankState, RunState, TruncationState, run_state
from lit_tbptt.training.position import Position


def test_a_checkpoint_holds_what_the_schema_says_and_nothing_else(first_run):
    main(first_run)
    saved = run_state(last())
    assert saved.keys() == typing.get_type_hints(RunState).keys()
    assert saved["version"] == VERSION
    assert saved["position"].keys() == vars(Position()).keys()
    assert saved["truncation"].keys() == typing.get_type_hints(TruncationState).keys()
    assert [rank.keys() for rank in saved["ranks"]] == [typing.get_type_hints(RankState).keys()]


def test_another_version_is_refused_with_a_sentence(first_run):
    main(first_run)
    file = RUN / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(file)
    checkpoint["lit_tbptt"]["version"] = VERSION + 6
    write_checkpoint(checkpoint, file)
    sentence = (
        f"the checkpoint has version {VERSION + 6} of the format, and this installation .* reads version {VERSION}"
    )
    with pytest.raises(InputError, match=sentence):
        LitLanguageModel.load_from_checkpoint(file)
    for command in ("fit", "test", "generate"):
        assert f"version {VERSION + 6} of the format" in refused(command, f"--ckpt_path={file}")


def test_checkpoints_lie_on_local_disks(tmp_path):
    with pytest.raises(InputError, match=r"'s3://bucket/last.ckpt': .*local disks only; copy the file"):
        read_checkpoint("s3://bucket/last.ckpt")
    with pytest.raises(InputError, match="local disks only"):
        write_checkpoint({}, "gs://bucket/last.ckpt")
    with pytest.raises(InputError, match="local disks only"):
        RunFolder(str(Path("s3://bucket/runs")))  # which has lost a slash
    write_checkpoint({"epoch": 3}, tmp_path / "odd:name.ckpt")
    assert read_checkpoint(tmp_path / "odd:name.ckpt")["epoch"] == 3
    torch.save({"epoch": 4}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="not one of this package's"):
        run_state(read_checkpoint(tmp_path / "other.ckpt"))
