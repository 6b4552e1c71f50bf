"""A language model with AR, TAR and averaged weights: on several processes as on one, and after a resume."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from processes import together
from torch.optim import SGD
from torch.testing import assert_close

from lit_tbptt import (
    LSTM,
    GradientHorizon,
    InputError,
    LitLanguageModel,
    NonMonotonicAveraging,
    RunCheckpoint,
    TextLanesDataModule,
    TextModel,
)
from lit_tbptt.files.checkpoint import read_checkpoint

LANES, K1, K2, STEPS, STOP = 6, 5, 12, 30, 19
TEXT = "".join(chr(97 + i * i % 23) for i in range(700))


class Losses(Callback):
    def __init__(self):
        self.validations = []

    def on_validation_end(self, trainer, module):
        self.validations.append(float(trainer.callback_metrics["val/nats_per_token"]))


class AtTheFourth(NonMonotonicAveraging):
    """Averages from the fourth validation on."""

    def should_start(self, loss):
        return len(self.losses) == 3


def fit(folder, num_ranks=1, max_steps=STEPS, resume=None, **options):
    """Trains in this process, one of `num_ranks`."""
    seed_everything(3, verbose=False)
    data = TextLanesDataModule(
        {"train": [TEXT[:500]], "validation": [TEXT[500:]]},
        num_lanes=LANES,
        k1=K1,
        windows_per_batch=2,
        eval_num_lanes=2,
    )
    model = LitLanguageModel(
        LSTM(7, 2),
        k1=K1,
        k2=K2,
        recompute_every=4,
        clip_norm=0.5,
        optimizer=lambda parameters: SGD(parameters, 1.0),
        **({"activation_penalty": 2.0, "temporal_penalty": 1.0} | options),
    )
    averaging, losses = AtTheFourth(), Losses()
    trainer = Trainer(
        max_steps=max_steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        precision="64-true",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[averaging, losses, GradientHorizon(every_n_steps=11, tokens_back=13), RunCheckpoint()],
    )
    trainer.fit(model, data, ckpt_path=resume)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights, losses.validations, averaging.losses, averaging.first_step


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, fit(folder)


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_continues_them(alone, tmp_path):
    _, expected = alone
    assert 4 < expected[3] < STOP
    stopped = together(tmp_path, 2, fit, tmp_path, 2, STOP)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert sorted(read_checkpoint(last)["lit_tbptt"]["ranks"][0]["carry"]["state"][2].shape) == [LANES // 2, 7]
    continued = fit(tmp_path, 1, STEPS, last)
    for _, _, losses, first in (*stopped, continued):
        assert first == expected[3]
        assert losses == pytest.approx(expected[2], rel=1e-6)
    for validations in (found[1] + continued[1] for found in stopped):
        assert validations == pytest.approx(expected[1], rel=1e-6)
    assert_close(continued[0], expected[0], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_what_reads_checkpoints_gets_the_average(alone):
    folder, (weights, *_) = alone
    saved = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert not torch.equal(saved["current_model_state"]["model.head.weight"], saved["state_dict"]["model.head.weight"])
    text, lit = TextModel.from_checkpoint(saved), LitLanguageModel.from_checkpoint(saved)
    for name, value in weights.items():
        assert_close(lit.state_dict()[name], value.float(), rtol=0, atol=0)
        assert_close(text.network.state_dict()[name.removeprefix("model.")], value.float(), rtol=0, atol=0)
    assert text.generate("abc", 5, temperature=0.0) == lit.generate("abc", 5, temperature=0.0)


def test_each_penalty_changes_the_weights(tmp_path):
    cases = ({}, {"activation_penalty": 0.0}, {"temporal_penalty": 0.0})
    found = [fit(tmp_path / str(number), 1, 4, **case)[0] for number, case in enumerate(cases)]
    assert len({tuple(weights["model.head.bias"].tolist()) for weights in found}) == 3


def test_a_run_does_not_resume_with_another_state(alone):
    folder, _ = alone
    with pytest.raises(InputError, match=r"model\.temporal_penalty=0\.0, where the run to be resumed has 1\.0"):
        fit(folder, 1, STEPS + 1, folder / "checkpoints" / "last.ckpt", temporal_penalty=0.0)
