"""Training a small language model that is stopped and continued, and all that must be equal at the end."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar

from lit_tbptt import GRU, LitLanguageModel, RunCheckpoint, RunFolder, StridedLanes, WarmupCosineLR, run_loggers
from lit_tbptt.data.text.tokenizers import CharTokenizer

LANES, K1, TOKENS, EPOCHS = 3, 4, 3 * 25, 2
WINDOWS = 7  # of 4, 4, 4, 4, 4, 4 and 1 tokens


def plain(windows_per_batch, num_lanes=LANES, seed=5):
    ids = np.random.default_rng(seed).integers(2, 13, TOKENS)
    return StridedLanes(ids, 0, num_lanes, K1, windows_per_batch), StridedLanes(ids[:20], 0, 2, 6)


def per_step(optimizer):
    return WarmupCosineLR(optimizer, warmup_steps=3, num_steps=17)


def per_epoch(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def monitored(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5)
    scheduler.monitor = "val/nats_per_token"
    return scheduler


class Steps(Callback):
    def __init__(self):
        self.run, self.validated = [], []

    def on_step_end(self, trainer, module):
        self.run.append(trainer.global_step)


def build(schedule, k2, **training):
    module = LitLanguageModel(
        GRU(6, 2, dropout=0.3, learned_initial_state=True),
        k1=K1,
        k2=k2,
        clip_norm=0.5,
        output_dropout=0.2,
        lr_scheduler=schedule,
        **training,
    )
    module._build(CharTokenizer("abcdefghijk"))
    return module


def fit_text(
    folder,
    windows_per_batch,
    schedule,
    max_steps=-1,
    resume=None,
    k2=None,
    val=0.5,
    callbacks=(),
    data=plain,
    save=True,
    **training,
):
    """Runs in a process whose generators stand anywhere, and returns what the end looks like."""
    if resume is None:
        seed_everything(1, verbose=False)
    else:
        seed_everything(random.randrange(99), verbose=False)
    saved = None if resume is None else torch.load(resume, weights_only=True)["lit_tbptt"]
    steps, (train, validation), module = Steps(), data(windows_per_batch), build(schedule, k2, **training)
    trainer = Trainer(
        max_epochs=EPOCHS,
        max_steps=max_steps,
        accelerator="cpu",
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=3,
        val_check_interval=val or 1.0,
        check_val_every_n_epoch=None if isinstance(val, int) and val else 1,
        logger=run_loggers(RunFolder(folder), *((saved["position"]["step"], saved["log"]["tokens"]) if saved else ())),
        callbacks=[steps, *([RunCheckpoint()] if save else ()), *callbacks],
    )
    trainer.fit(module, train, validation if val else None, ckpt_path=resume)
    return trainer, module, steps


def everything(trainer, module):
    """All that must be equal at the end of two runs."""
    carry = module.carry.describe()
    state = [*module.state_dict().values(), *carry["state"], *(part for window in carry["context"] for part in window)]
    for parameter in trainer.optimizers[0].state.values():
        state += [torch.as_tensor(value) for value in parameter.values()]
    state += [torch.get_rng_state(), torch.tensor(np.random.random(3)), torch.tensor([random.random()])]  # noqa: NPY002 - the global generator is what is compared
    state.append(torch.tensor([group["lr"] for group in trainer.optimizers[0].param_groups], dtype=torch.float64))
    return [part for part in state if part is not None], (trainer.current_epoch, trainer.global_step)


def same(found, expected):
    assert found[1] == expected[1]
    assert len(found[0]) == len(expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
