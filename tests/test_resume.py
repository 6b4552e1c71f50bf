"""A run that is stopped anywhere and continued is the run that was never stopped, to the last bit."""

import csv
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tasks import streamed, strided

from lit_tbptt import GRU, LitLanguageModel, StridedLanes, WarmupCosineLR
from lit_tbptt.data.text.tokenizers import CharTokenizer
from lit_tbptt.training.callbacks import RunCheckpoint
from lit_tbptt.training.loggers import run_loggers

LANES, K1, TOKENS, EPOCHS = 3, 4, 3 * 25, 2
WINDOWS = 7  # of 4, 4, 4, 4, 4, 4 and 1 tokens


def plain(windows_per_batch):
    ids = np.random.default_rng(5).integers(2, 13, TOKENS)
    return StridedLanes(ids, 0, LANES, K1, windows_per_batch), StridedLanes(ids[:20], 0, 2, 6)


TEXTS = ["".join(chr(98 + (i * j) % 11) for j in range(i * i % 23)) for i in range(19)]


def of_documents(make, **options):
    """Lanes of TEXTS to train and to validate on."""
    return lambda windows_per_batch: (
        make(TEXTS, LANES, K1, windows_per_batch, **options),
        make(TEXTS[:5], 2, 6, document_reset=options.get("document_reset", False)),
    )


KINDS = {
    "strided": of_documents(strided, document_reset=True, shuffle_seed=3, rotation_seed=4),
    "streamed": of_documents(streamed, num_shards=5, num_readers=3, shuffle_seed=3),
    "streamed, reset": of_documents(streamed, num_shards=5, document_reset=True),
    "repeated": of_documents(streamed, num_shards=5, num_readers=3, shuffle_seed=3, repeat=True),
}


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

    def on_window_end(self, trainer, module, window):
        self.run.append(trainer.global_step)


def build(schedule, k2, **training):
    module = LitLanguageModel(
        GRU(6, 2, dropout=0.3, learned_initial_state=True),
        K1,
        k2,
        clip_norm=0.5,
        output_dropout=0.2,
        lr_scheduler=schedule,
        **training,
    )
    module._build(CharTokenizer("abcdefghijk"))
    return module


def fit(
    folder,
    windows_per_batch,
    schedule,
    max_steps=-1,
    resume=None,
    k2=None,
    val=0.5,
    callbacks=(),
    data=plain,
    **training,
):
    """Runs in a process whose generators stand anywhere, and returns what the end looks like."""
    if resume is None:
        seed_everything(1, verbose=False)
    else:
        seed_everything(random.randrange(99), verbose=False)
    saved = None if resume is None else torch.load(resume, weights_only=True)["tbptt"]
    steps, (train, validation), module = Steps(), data(windows_per_batch), build(schedule, k2, **training)
    trainer = Trainer(
        max_epochs=EPOCHS,
        max_steps=max_steps,
        accelerator="cpu",
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=3,
        val_check_interval=val or 1.0,
        check_val_every_n_epoch=None if isinstance(val, int) and val else 1,
        logger=run_loggers(folder, *((saved["position"]["step"], saved["log"]["tokens"]) if saved else ())),
        callbacks=[steps, RunCheckpoint(), *callbacks],
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


def curve(folder):
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return [{key: value for key, value in row.items() if key != "train/tokens_per_second" and value} for row in rows]


def same(found, expected):
    assert found[1] == expected[1]
    assert len(found[0]) == len(expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    known = {}

    def run(*args, **options):
        key = (args, tuple(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("whole") / "run" / "version_0"
            trainer, module, steps = fit(folder, *args, **options)
            assert len(steps.run) == EPOCHS * WINDOWS or "data" in options
            known[key] = everything(trainer, module), curve(folder)
        return known[key]

    return run


@pytest.mark.parametrize("stop", range(1, EPOCHS * WINDOWS))
@pytest.mark.parametrize("windows_per_batch", [1, 4])
@pytest.mark.parametrize("schedule", [per_step, per_epoch, monitored])
def test_stopped_after_any_step_by_max_steps(stop, windows_per_batch, schedule, tmp_path, uninterrupted):
    expected, whole_curve = uninterrupted(windows_per_batch, schedule, k2=7)
    folder = tmp_path / "run" / "version_0"
    _, _, first = fit(folder, windows_per_batch, schedule, stop, k2=7)
    assert first.run == list(range(1, stop + 1))
    trainer, module, second = fit(
        folder, windows_per_batch, schedule, resume=folder / "checkpoints" / "last.ckpt", k2=7
    )
    assert second.run == list(range(stop + 1, EPOCHS * WINDOWS + 1))
    same(everything(trainer, module), expected)
    assert curve(folder) == whole_curve


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
@pytest.mark.parametrize(
    "training",
    [
        {"k2": 9, "checkpoint_every": 2, "state_drop_probability": 0.4, "loss_reduction": "sum"},
        {"carry_state": False},
    ],
    ids=["k2, recomputed, dropped states", "no carried state"],
)
def test_every_way_to_train_is_continued(training, stop, tmp_path, uninterrupted):
    expected, whole_curve = uninterrupted(4, per_step, **training)
    folder = tmp_path / "run" / "version_0"
    fit(folder, 4, per_step, stop, **training)
    trainer, module, _ = fit(folder, 4, per_step, resume=folder / "checkpoints" / "last.ckpt", **training)
    same(everything(trainer, module), expected)
    assert curve(folder) == whole_curve


@pytest.mark.parametrize("stop", [3, 8, 17, 18, 19, 20, 21, 22, 23, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lanes_is_continued(kind, stop, tmp_path, uninterrupted):
    options = {"data": KINDS[kind], "k2": 7, "val": 1.0}
    end = 36 if kind == "repeated" else -1
    expected, whole_curve = uninterrupted(4, per_epoch, end, **options)
    assert stop < expected[1][1]
    folder = tmp_path / "run" / "version_0"
    fit(folder, 4, per_epoch, stop, **options)
    resume = folder / "checkpoints" / "last.ckpt"
    trainer, module, steps = fit(folder, 4, per_epoch, end, resume=resume, **options)
    assert steps.run == list(range(stop + 1, expected[1][1] + 1))
    same(everything(trainer, module), expected)
    assert curve(folder) == whole_curve


class Copies(Callback):
    """Saves wherever a callback could."""

    def __init__(self, folder):
        self.folder, self.paths = folder, []

    def save(self, trainer, place):
        if not trainer.sanity_checking:
            self.paths.append(self.folder / f"{trainer.global_step:02}-{len(self.paths):03}-{place}.ckpt")
            trainer.save_checkpoint(self.paths[-1], weights_only=False)

    def on_window_end(self, trainer, module, window):
        self.save(trainer, "window")

    def on_train_batch_end(self, trainer, *args):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, module):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer, "epoch")

    def on_train_epoch_start(self, trainer, module):
        self.save(trainer, "epoch-start")


@pytest.mark.parametrize("val", [0.5, 3, 0])
@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_continued_from_wherever_a_checkpoint_was_saved(windows_per_batch, val, tmp_path):
    """As after a kill: the run that was saved went on, and the one that continues knows nothing of that."""
    schedule = monitored if val == 0.5 else per_epoch
    copies = Copies(tmp_path / "copies")
    folder = tmp_path / "run" / "version_0"
    trainer, module, steps = fit(folder, windows_per_batch, schedule, val=val, callbacks=[copies])
    expected, whole_curve = everything(trainer, module), curve(folder)
    assert len(copies.paths) > 2 * EPOCHS * WINDOWS / windows_per_batch
    for path in copies.paths:
        # The folder holds the whole run's curves, from which the continued one must drop what came after.
        trainer, module, steps = fit(folder, windows_per_batch, schedule, val=val, resume=path)
        assert steps.run == list(range(int(path.name[:2]) + 1, EPOCHS * WINDOWS + 1)), path
        same(everything(trainer, module), expected)
        assert curve(folder) == whole_curve, path
