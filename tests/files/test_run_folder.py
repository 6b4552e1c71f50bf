"""Names of runs, what lies in a run's folder, and that no two runs get the same one."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lit_tbptt import InputError, RunFolder
from lit_tbptt.files.checkpoint import write_checkpoint
from lit_tbptt.files.run_folder import find_checkpoint, next_version, runs_of, searched_runs
from lit_tbptt.files.schema import VERSION


def test_runs_lie_under_the_name_of_their_configuration():
    assert runs_of(None) == Path("runs/default")
    assert runs_of("configs/my.model.yaml") == Path("runs/my.model")


def test_every_run_that_starts_at_once_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: RunFolder.reserve(tmp_path / "runs").path, range(50)))
    assert sorted(int(folder.name.removeprefix("version_")) for folder in folders) == list(range(50))
    assert all(folder.is_dir() for folder in folders)


def test_a_new_version_follows_the_highest_one(tmp_path):
    for name in ("version_3", "version_11", "version_x", "other"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 12
    assert RunFolder.reserve(tmp_path).name == "version_12"
    assert next_version(tmp_path / "none") == 0


def test_a_named_run_is_not_written_over(tmp_path):
    folder = RunFolder.reserve(tmp_path, "mine")
    assert RunFolder.reserve(tmp_path, "mine").path == folder.path  # nothing was saved there yet
    write_checkpoint({}, folder.last)
    with pytest.raises(InputError, match=r"run_name='mine': .*mine has checkpoints; continue it with --ckpt_path last"):
        RunFolder.reserve(tmp_path, "mine")


def test_what_lies_in_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    paths = [folder.last, folder.previous, folder.best(), folder.best(2), folder.config(), folder.config(70)]
    names = ["checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt", "checkpoints/best-3.ckpt"]
    assert [str(path.relative_to(folder.path)) for path in paths] == [*names, "config.yaml", "config_from_step_70.yaml"]
    assert RunFolder.of_checkpoint(folder.best(2)).path == folder.path
    assert RunFolder.of_checkpoint(tmp_path / "model.ckpt") is None
    assert not folder.path.exists()


def at_step(step):
    return {"global_step": step, "lit_tbptt": {"version": VERSION}}


def test_last_is_the_newest_step_of_the_run_that_was_written_to_last(tmp_path):
    old, new = RunFolder(tmp_path / "version_0"), RunFolder(tmp_path / "version_1")
    write_checkpoint(at_step(9), old.last)
    write_checkpoint(at_step(5), new.previous)
    write_checkpoint(at_step(7), new.best())
    assert find_checkpoint("last", [tmp_path], None) == (new.best(), at_step(7))
    assert find_checkpoint("last", [tmp_path], "version_0")[0] == old.last
    assert find_checkpoint(str(old.last), [tmp_path], None)[1] == at_step(9)
    with pytest.raises(InputError, match="version_0 was not validated during training"):
        find_checkpoint("best", [tmp_path], "version_0")
    with pytest.raises(InputError, match=r"no checkpoint in .*none/checkpoints; give the same --config"):
        find_checkpoint("last", [tmp_path], "none")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a"])
def test_a_name_that_is_a_path_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"^run_name=.*must be the name of a folder"):
        RunFolder.reserve(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_runs_is_no_run(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    message = f"^init_from='{tmp_path}': a folder of runs, first, second; give one of them, {tmp_path / 'second'}$"
    with pytest.raises(InputError, match=message):
        find_checkpoint(str(tmp_path), [tmp_path], None, "init_from")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for name in (None, "mine"):
        with pytest.raises(InputError, match=rf"^runs_dir='{tmp_path}/file': .*Not a directory\); give a folder"):
            RunFolder.reserve(tmp_path / "file" / "default", name)


def test_a_checkpoint_that_is_not_there_or_another_ones_is_named_as_it_was_given(tmp_path, in_tmp_path):
    write_checkpoint({"state_dict": {}}, tmp_path / "other.ckpt")
    for argument in ("ckpt_path", "init_from"):
        for asked, message in (
            ("othr.ckpt", "no such file; did you mean other.ckpt?"),
            ("Last", "no such file; did you mean last?"),
            ("none.pt", "no such file"),
            ("other.ckpt", "the checkpoint is not one of this package's: it has no entry lit_tbptt"),
        ):
            with pytest.raises(InputError) as refused:
                find_checkpoint(asked, [tmp_path], None, argument)
            assert str(refused.value) == f"{argument}={asked!r}: {message}"
    with pytest.raises(InputError, match="init_from='last': no checkpoint in"):
        find_checkpoint("last", [tmp_path], None, "init_from")


def test_last_is_the_newest_run_of_all_configs_unless_one_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert searched_runs(None) == [Path("runs/default")]  # there is none yet
    folders = [RunFolder(tmp_path / "runs" / config / "version_0") for config in ("mine", "default", "other")]
    for step, folder in enumerate(folders, 3):
        folder.checkpoints.mkdir(parents=True)
        write_checkpoint(at_step(step), folder.last)
        os.utime(folder.last, (step, step if step != 3 else 99))
    assert find_checkpoint("last", searched_runs(None), None)[1] == at_step(3)
    assert find_checkpoint("last", searched_runs(None), "version_0")[1] == at_step(3)
    assert find_checkpoint("last", searched_runs("other.yaml"), None)[1] == at_step(5)
    with pytest.raises(InputError, match=r"no checkpoint in runs/\*/nothing/checkpoints"):
        find_checkpoint("last", searched_runs(None), "nothing")
