"""The progress bar counts optimizer steps, and knows how many an epoch has."""

import numpy as np
import pytest
import torch
from letters import strided
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from resuming import build

from lit_tbptt import StridedLanes
from lit_tbptt.training.callbacks import StepProgressBar


def fit(lanes, **options):
    bar = StepProgressBar()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[bar], **quiet, **options)
    trainer.fit(build(lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer), None), lanes)
    return bar._steps, trainer.global_step


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 3}, 21),
        ({"max_steps": 5}, 5),
        ({"max_epochs": 2, "max_steps": 9}, 9),
        ({"max_epochs": 2, "limit_train_batches": 3}, 12),
        ({"max_epochs": 2, "limit_train_batches": 1.0}, 14),
    ],
)
def test_its_total_is_the_number_of_steps(options, expected):
    lanes = StridedLanes(np.arange(75) % 11 + 2, 0, 3, 4, 2)  # 7 windows in 4 batches
    bar, steps = fit(lanes, **options)
    assert bar.total == bar.n == steps == expected


def test_it_has_none_where_epochs_differ():
    texts = ["abcde", "fg", "hijkabcdefg", "b", "cd"]
    lanes = strided(texts, 2, 4, document_reset=True, shuffle_seed=3)
    assert lanes.num_windows is None
    bar, steps = fit(lanes, max_epochs=2)
    assert bar.total is None
    assert bar.n == steps > 0


def test_what_is_logged_is_there_for_any_bar_and_any_callback():
    class Reads(Callback):
        def on_step_end(self, trainer, pl_module):
            shown = dict(trainer.progress_bar_metrics)
            assert shown == {name: pytest.approx(value.item()) for name, value in trainer.callback_metrics.items()}
            read.append(shown.get("train/nats_per_token"))

    read, lanes = [], StridedLanes(np.arange(75) % 11 + 2, 0, 3, 4, 2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", callbacks=[Reads(), TQDMProgressBar()], max_epochs=1, log_every_n_steps=3, **quiet
    )
    trainer.fit(build(lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer), None), lanes)
    assert read[:2] == [None, None]
    assert len(read) == 7
    assert len(set(read[2:5])) == 1
    assert read[5] == read[6] != read[4]
