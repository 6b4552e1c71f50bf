"""The program on episodes: what a memory is worth, and a run of two processes that is killed and continued."""

import ast
import os
import runpy
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from processes import TESTS, environment, free_port, run_script, start, status_of, together
from torch.utils._pytree import tree_leaves

from lit_tbptt import RunCheckpoint, SequenceLanesDataModule
from lit_tbptt.files.checkpoint import read_checkpoint

EPISODES = TESTS.parent / "examples" / "episodes.py"
KILLED, SAVED, STEPS = 59, 56, 100
LAST = Path("checkpoints") / "last.ckpt"


@pytest.mark.slow
def test_a_carried_state_is_worth_more_than_anything_without_a_memory(in_tmp_path):
    options = ("--num_episodes", 200, "--num_epochs", 2, "--num_lanes", 6, "--k2", 40)
    assert status_of(start(run_script, EPISODES, *options, log="log")) == 0, Path("log").read_text()
    figures = ast.literal_eval(Path("log").read_text().splitlines()[-1])
    assert figures.keys() == {"carried", "reset", "memoryless", "padding"}
    (carried, success), (reset, _), (memoryless, chance) = (figures[name] for name in list(figures)[:3])
    assert carried < memoryless / 2
    assert carried < reset
    assert success > chance + 0.2
    assert 0 < figures["padding"] < 1


class KillAt(Callback):
    """Kills the second process after some steps, as a machine that fails does."""

    def on_step_end(self, trainer, module):
        if trainer.global_step == KILLED and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def same(leaf, other):
    return torch.equal(leaf, other) if isinstance(leaf, torch.Tensor) else leaf == other


def fit(folder, *callbacks, resume=None):
    """Trains in this process, one of two, and returns all that must be equal."""
    program = runpy.run_path(str(EPISODES))
    train, val = (program["Corridors"](number, seed).walk()[0] for number, seed in ((41, 5), (7, 6)))
    seed_everything(3, verbose=False)
    model = program["Imitator"](hidden_size=9, k1=7, k2=17)
    data = SequenceLanesDataModule(
        train,
        val,
        inputs=["position", "sensors", "contact"],
        targets="action",
        static="goal",
        num_lanes=5,
        k1=7,
        windows_per_batch=3,
        eval_num_lanes=3,
        normalize=True,
    )
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[RunCheckpoint(every_n_steps=8), *callbacks],
    )
    trainer.fit(model, data, ckpt_path=resume)
    (losses,) = trainer.validate(model, data, verbose=False)
    tensors = (model.state_dict(), model.carry.describe(), trainer.optimizers[0].state_dict()["state"])
    return tree_leaves(tensors), losses, model.position, trainer.current_epoch


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_are_continued_to_the_same_bits(tmp_path):
    for name in ("whole", "killed", "resumed"):
        (tmp_path / name).mkdir()
    whole = together(tmp_path / "whole", 2, fit, tmp_path / "whole")
    killed, port = tmp_path / "killed", free_port()
    processes = [
        start(fit, killed, KillAt(), log=killed / f"log-{rank}", folder=killed, variables=environment(rank, 2, port))
        for rank in range(2)
    ]
    try:
        assert status_of(processes[1]) == -signal.SIGKILL, (killed / "log-1").read_text()
    finally:
        for process in processes:  # the other one, wherever it is
            process.kill()
            process.join()
            process.close()
    assert read_checkpoint(killed / LAST)["global_step"] == SAVED
    resumed = together(tmp_path / "resumed", 2, fit, killed, resume=killed / LAST)
    for (ours, *others), (expected, *values) in zip(resumed, whole, strict=True):
        assert len(ours) == len(expected) > 20
        assert all(map(same, ours, expected))
        assert others == values
    assert values[-1] > 0
