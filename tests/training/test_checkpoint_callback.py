"""The checkpoints that RunCheckpoint keeps, also on a full disk."""

import io
import resource

import pytest
import torch
from command_line import RUN, curve, last
from loops import Recording, batches, fit
from oscillator import Waves
from tasks import Regression

from lit_tbptt import InputError, RunCheckpoint
from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint


def saving():
    return {"callbacks": [RunCheckpoint()], "enable_checkpointing": True}


def test_a_full_disk_does_not_stop_a_run(first_run, monkeypatch):
    saved = []

    def limited(checkpoint, path):
        if isinstance(path, io.BytesIO):  # no file, but a look at what a checkpoint may hold
            return save(checkpoint, path)
        saved.append(checkpoint["global_step"])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if 8 <= saved[-1] < 16:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            return save(checkpoint, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    save = torch.save
    monkeypatch.setattr(torch, "save", limited)
    full = (
        r"could not be written \(File too large, after 0.0 MB; .* are free there\).*last good checkpoint: .*last\.ckpt"
    )
    with pytest.warns(UserWarning, match=full):
        main([*first_run, "--checkpoint.every_n_steps=2"])
    assert max(saved) == last()["global_step"] == 20
    assert not list((RUN / "checkpoints").glob("*.part"))


def test_the_number_of_checkpoints_is_bounded(first_run):
    main(
        [
            *first_run,
            "--trainer.val_check_interval=1",
            "--checkpoint.save_top_k=3",
            "--checkpoint.every_n_steps=1",
            "--checkpoint.monitor=val/accuracy",
            "--checkpoint.mode=max",
        ]
    )
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == [
        "best-2.ckpt",
        "best-3.ckpt",
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]
    best = [
        read_checkpoint(RUN / "checkpoints" / name)["lit_tbptt"]["metrics"]["val/accuracy"]
        for name in ("best.ckpt", "best-2.ckpt", "best-3.ckpt")
    ]
    assert best == sorted(best, reverse=True)
    assert best[0] == max(float(row["val/accuracy"]) for row in curve() if "val/accuracy" in row)


def test_a_continued_run_knows_how_good_its_best_was(first_run):
    def best_step():
        return read_checkpoint(RUN / "checkpoints" / "best.ckpt")["global_step"]

    often = "--trainer.val_check_interval=5"
    main([*first_run, often])
    before = best_step()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=40", often, "--optimizer.lr=30.0"])
    losses = {int(row["step"]): float(row["val/bits_per_byte"]) for row in curve() if row.get("val/bits_per_byte")}
    assert max(losses) > 20
    assert losses[before] < min(loss for step, loss in losses.items() if step > 20)
    assert best_step() == before


class Tracker(Recording):
    """A logger whose folder is that of all its runs, as those of services are."""

    name = "project"

    def __init__(self, folder, version):
        super().__init__()
        self.folder, self.version = folder, version

    @property
    def save_dir(self):
        return self.folder


@pytest.mark.parametrize(("version", "name"), [("one", "one"), (7, "version_7")])
def test_a_run_of_any_logger_has_a_folder_of_its_own(version, name, tmp_path):
    logger = Tracker(str(tmp_path), version)
    fit(Regression(k1=5), batches(5), max_steps=3, logger=logger, **saving())
    assert (tmp_path / "project" / name / "checkpoints" / "last.ckpt").is_file()


def test_a_run_does_not_replace_the_checkpoints_of_another(tmp_path):
    options = {"default_root_dir": tmp_path, "max_steps": 3}
    trainer = fit(Regression(k1=5), Waves(1, 3, 5, 4), **options, **saving())
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(InputError, match="has the checkpoints of another run, which this one would replace"):
        fit(Regression(k1=5), Waves(1, 3, 5, 4), **options, **saving())
    assert last.read_bytes() == before
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(trainer.lightning_module, Waves(1, 3, 5, 4))  # of the same trainer: the run goes on
    fit(Regression(k1=5), Waves(1, 3, 5, 4), resume=last, **options | {"max_steps": 6}, **saving())
    assert read_checkpoint(last)["global_step"] == 6


def test_the_best_of_one_run_is_no_measure_for_the_next(tmp_path):
    checkpoint = RunCheckpoint(save_top_k=2)
    for name, lr in (("good", 0.01), ("bad", 0.0)):
        options = {"callbacks": [checkpoint], "enable_checkpointing": True, "default_root_dir": tmp_path / name}
        fit(Regression(k1=5, lr=lr), Waves(1, 3, 5, 4), batches(5), max_epochs=3, **options)
        assert checkpoint.best_model_path == str(tmp_path / name / "checkpoints" / "best.ckpt")
        assert not list((tmp_path / name / "checkpoints").glob("new-*"))


def test_best_is_the_lowest_or_the_highest():
    with pytest.raises(InputError, match=r"checkpoint\.mode='MIN': must be min or max"):
        RunCheckpoint(mode="MIN")
