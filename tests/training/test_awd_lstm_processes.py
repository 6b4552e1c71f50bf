"""Dropped weights and dropped tokens in several processes: as in one, also after a resume."""

import pytest
import torch
from letters import strided
from lightning.pytorch import Trainer, seed_everything
from processes import together
from torch.optim import SGD

from lit_tbptt import AWDLSTM, LitLanguageModel, Rank, RunCheckpoint
from lit_tbptt.data.text.tokenizers import CharTokenizer

LANES, STEPS = 5, 11
TEXTS = ["".join(chr(97 + (i * j) % 11) for j in range(i * i % 29)) for i in range(40)]


def fit(folder, num_ranks, max_steps=STEPS, resume=None, dropout=0.0):
    """Trains in this process, one of `num_ranks`; returns the mean loss of the last steps and the weights."""
    seed_everything(1, verbose=False)
    core = AWDLSTM(7, 3, weight_drop=0.4, dropout=dropout, input_size=6)
    model = LitLanguageModel(
        core,
        k1=4,
        k2=7,
        vocabulary_dropout=0.3,
        output_dropout=dropout,
        dropout_over_time="shared" if dropout else "free",
        tie_weights=True,
        optimizer=lambda parameters: SGD(parameters, 2.0),
        clip_norm=0.25,
    )
    torch.manual_seed(2)  # Lightning seeds several processes again
    model._build(CharTokenizer("abcdefghijk"))
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        precision="64-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        callbacks=[RunCheckpoint(every_n_steps=1000)],
    )
    share = Rank(trainer.global_rank, num_ranks).share(LANES)
    trainer.fit(model, strided(TEXTS, LANES, 4, 3, local_lanes=share), ckpt_path=resume)
    return float(trainer.callback_metrics["train/nats_per_token"]), {
        name: value.clone() for name, value in model.state_dict().items()
    }


def last(folder):
    return folder / "checkpoints" / "last.ckpt"


def assert_close(found, expected):
    for loss, weights in found:
        assert loss == pytest.approx(expected[0], rel=1e-6)  # Lightning keeps it in float32
        torch.testing.assert_close(weights, expected[1], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("alone"), 1)


def test_two_processes_train_as_one(alone, tmp_path):
    assert_close(together(tmp_path, 2, fit, tmp_path, 2), alone)


@pytest.mark.slow
def test_the_number_of_processes_may_change_at_every_resume(alone, tmp_path):
    resume = None
    for num_ranks, max_steps in ((2, 3), (1, 5), (3, 8), (2, STEPS)):
        found = together(tmp_path, num_ranks, fit, tmp_path, num_ranks, max_steps, resume)
        resume = last(tmp_path)
    assert_close(found, alone)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    _, whole = fit(tmp_path / "whole", 1, dropout=0.3)
    fit(tmp_path / "stopped", 1, 4, dropout=0.3)
    _, resumed = fit(tmp_path / "stopped", 1, STEPS, last(tmp_path / "stopped"), dropout=0.3)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_so_do_two_processes(tmp_path):
    whole = together(tmp_path, 2, fit, tmp_path / "whole", 2, dropout=0.3)
    together(tmp_path, 2, fit, tmp_path / "stopped", 2, 4, dropout=0.3)
    resumed = together(tmp_path, 2, fit, tmp_path / "stopped", 2, STEPS, last(tmp_path / "stopped"), dropout=0.3)
    for (_, mine), (_, theirs) in zip(resumed, whole, strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
