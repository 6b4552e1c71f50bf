"""The checkpoints that RunCheckpoint keeps, also on a full disk."""

import resource
from pathlib import Path

import pytest
import torch
from command_line import RUN, curve, last

from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint


def test_a_full_disk_does_not_stop_a_run(first_run, monkeypatch):
    saved = []

    def limited(checkpoint, path):
        if not isinstance(path, Path):  # no file, but a look at what a checkpoint may hold
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
    with pytest.warns(UserWarning, match=r"could not be written \(.*last good checkpoint: .*last\.ckpt"):
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
