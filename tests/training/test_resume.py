"""A run that is stopped anywhere and continued is the run that was never stopped, to the last bit."""

from itertools import product

import pytest
import torch
from command_line import curve
from letters import streamed, strided
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from loops import batches, fit
from resuming import EPOCHS, K1, LANES, WINDOWS, everything, fit_text, monitored, per_epoch, per_step, plain, same
from tasks import Regression

from lit_tbptt import AdaptiveHorizon, InputError, NormalLengths, RandomTruncation

TEXTS = ["".join(chr(98 + (i * j) % 11) for j in range(i * i % 23)) for i in range(19)]


def of_documents(make, **options):
    """Lanes of TEXTS to train and to validate on."""
    return lambda windows_per_batch: (
        make(TEXTS, LANES, K1, windows_per_batch, **options),
        make(TEXTS[:5], 2, 6, document_reset=options.get("document_reset", False)),
    )


# Of 1 to 4 tokens, and other ones in the second epoch.
DRAWN = NormalLengths(3, 1.5, 1, 0.2, seed=4)
KINDS = {
    "strided": of_documents(strided, document_reset=True, shuffle_seed=3, rotation_seed=4),
    "streamed": of_documents(streamed, num_shards=5, num_readers=3, shuffle_seed=3),
    "streamed, reset": of_documents(streamed, num_shards=5, document_reset=True),
    "repeated": of_documents(streamed, num_shards=5, num_readers=3, shuffle_seed=3, repeat=True),
    "strided, drawn lengths": of_documents(strided, rotation_seed=4, window_lengths=DRAWN),
    "streamed, drawn lengths": of_documents(streamed, num_shards=5, num_readers=3, window_lengths=DRAWN),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    known = {}

    def run(*args, **options):
        key = (args, tuple(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("whole") / "run" / "version_0"
            trainer, module, steps = fit_text(folder, *args, **options)
            assert len(steps.run) == EPOCHS * WINDOWS or "data" in options
            known[key] = everything(trainer, module), curve(folder)
        return known[key]

    return run


# Every stop with one schedule, and every third one of the others with each size of batches.
STOPS = [
    pytest.param(stop, windows_per_batch, schedule, marks=() if fast else pytest.mark.slow)
    for number, (windows_per_batch, schedule) in enumerate(product([1, 4], [per_step, per_epoch, monitored]))
    for stop in range(1, EPOCHS * WINDOWS)
    for fast in [(windows_per_batch, schedule) == (4, per_step) or (stop + number) % 3 == 0]
]


@pytest.mark.parametrize(("stop", "windows_per_batch", "schedule"), STOPS)
def test_stopped_after_any_step_by_max_steps(stop, windows_per_batch, schedule, tmp_path, uninterrupted):
    expected, whole_curve = uninterrupted(windows_per_batch, schedule, k2=7)
    folder = tmp_path / "run" / "version_0"
    _, _, first = fit_text(folder, windows_per_batch, schedule, stop, k2=7)
    assert first.run == list(range(1, stop + 1))
    trainer, module, second = fit_text(
        folder, windows_per_batch, schedule, resume=folder / "checkpoints" / "last.ckpt", k2=7
    )
    assert second.run == list(range(stop + 1, EPOCHS * WINDOWS + 1))
    same(everything(trainer, module), expected)
    assert curve(folder) == whole_curve


def test_where_max_steps_interrupts_a_batch_the_weights_may_be_the_best_and_are_continued(tmp_path, uninterrupted):
    expected, whole_curve = uninterrupted(4, per_step, val=1)
    folder = tmp_path / "run" / "version_0"
    trainer, _, _ = fit_text(folder, 4, per_step, 9, val=1)  # after batches of 4, 3 and 2 windows
    losses = {
        int(row["step"]): float(row["val/nats_per_token"]) for row in curve(folder) if "val/nats_per_token" in row
    }
    assert list(losses) == [4, 7, 9]
    assert min(losses, key=losses.__getitem__) == 9
    best = folder / "checkpoints" / "best.ckpt"
    assert trainer.checkpoint_callback.best_model_path == str(best)
    for path in (best, best.with_name("last.ckpt")):
        assert torch.load(path, weights_only=True)["global_step"] == 9
        trainer, module, _ = fit_text(tmp_path / path.stem / "version_0", 4, per_step, val=1, resume=path)
        same(everything(trainer, module), expected)
    fit_text(folder, 4, per_step, val=1, resume=best.with_name("last.ckpt"))
    assert curve(folder) == whole_curve


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
@pytest.mark.parametrize(
    "training",
    [
        {"k2": 9, "recompute_every": 2, "state_drop_probability": 0.4, "loss_reduction": "sum"},
        {"carry_state": False},
    ],
    ids=["k2, recomputed, dropped states", "no carried state"],
)
def test_every_way_to_train_is_continued(training, stop, tmp_path, uninterrupted):
    expected, whole_curve = uninterrupted(4, per_step, **training)
    folder = tmp_path / "run" / "version_0"
    fit_text(folder, 4, per_step, stop, **training)
    trainer, module, _ = fit_text(folder, 4, per_step, resume=folder / "checkpoints" / "last.ckpt", **training)
    same(everything(trainer, module), expected)
    assert curve(folder) == whole_curve


SELDOM = [pytest.param(stop, marks=pytest.mark.slow) for stop in (8, 17, 20, 22, 30)]


@pytest.mark.parametrize("stop", [3, 18, 19, 21, 23, *SELDOM])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lanes_is_continued(kind, stop, tmp_path, uninterrupted):
    options = {"data": KINDS[kind], "k2": 7, "val": 1.0}
    end = 36 if kind == "repeated" else -1
    expected, whole_curve = uninterrupted(4, per_epoch, end, **options)
    assert stop < expected[1][1]
    folder = tmp_path / "run" / "version_0"
    fit_text(folder, 4, per_epoch, stop, **options)
    resume = folder / "checkpoints" / "last.ckpt"
    trainer, module, steps = fit_text(folder, 4, per_epoch, end, resume=resume, **options)
    assert steps.run == list(range(stop + 1, expected[1][1] + 1))
    same(everything(trainer, module), expected)
    assert curve(folder) == whole_curve


class Estimates(Callback):
    """Asks, as schedules are made, how long the fit will be, for which Lightning loads the data early."""

    def setup(self, trainer, module, stage):
        assert trainer.estimated_stepping_batches  # -1 where the lanes have no length


@pytest.mark.parametrize("stop", [5, 21])
@pytest.mark.parametrize("kind", ["strided", "streamed"])
def test_a_schedule_may_ask_for_the_length_of_the_fit(kind, stop, tmp_path, uninterrupted):
    options = {"data": KINDS[kind], "k2": 7, "val": 1.0}
    expected, _ = uninterrupted(4, per_epoch, -1, **options)
    folder = tmp_path / "run" / "version_0"
    fit_text(folder, 4, per_epoch, stop, callbacks=[Estimates()], **options)
    resume = folder / "checkpoints" / "last.ckpt"
    trainer, module, steps = fit_text(folder, 4, per_epoch, resume=resume, callbacks=[Estimates()], **options)
    assert steps.run == list(range(stop + 1, expected[1][1] + 1))
    same(everything(trainer, module), expected)


class Copies(Callback):
    """Saves wherever a callback could."""

    def __init__(self, folder, windows=False):
        self.folder, self.paths, self.windows = folder, [], windows

    def save(self, trainer, place):
        if not trainer.sanity_checking:
            self.paths.append(self.folder / f"{trainer.global_step:02}-{len(self.paths):03}-{place}.ckpt")
            trainer.save_checkpoint(self.paths[-1], weights_only=False)

    def on_step_end(self, trainer, module):
        self.save(trainer, "step")

    def on_window_end(self, trainer, module, window):
        if self.windows:
            self.save(trainer, "window")

    def on_train_batch_end(self, trainer, *args):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, module):
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer, "epoch")

    def on_train_epoch_start(self, trainer, module):
        self.save(trainer, "epoch-start")


@pytest.mark.parametrize("val", [0.5, *(pytest.param(val, marks=pytest.mark.slow) for val in (3, 0))])
@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_continued_from_wherever_a_checkpoint_was_saved(windows_per_batch, val, tmp_path):
    """As after a kill: the run that was saved went on, and the one that continues knows nothing of that."""
    schedule = monitored if val == 0.5 else per_epoch
    copies = Copies(tmp_path / "copies")
    folder = tmp_path / "run" / "version_0"
    trainer, module, steps = fit_text(folder, windows_per_batch, schedule, val=val, callbacks=[copies])
    expected, whole_curve = everything(trainer, module), curve(folder)
    assert len(copies.paths) > 2 * EPOCHS * WINDOWS / windows_per_batch
    for path in copies.paths:
        # The folder holds the whole run's curves, from which the continued one must drop what came after.
        trainer, module, steps = fit_text(folder, windows_per_batch, schedule, val=val, resume=path)
        assert steps.run == list(range(int(path.name[:2]) + 1, EPOCHS * WINDOWS + 1)), path
        same(everything(trainer, module), expected)
        assert curve(folder) == whole_curve, path


RULES = {
    "windows_per_step": {"windows_per_step": 2},
    "random truncation": {"update": RandomTruncation(0.4)},
}


@pytest.mark.parametrize("val", [0.5, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rule", "windows_per_batch"),
    [("windows_per_step", 4), ("random truncation", 4), pytest.param("random truncation", 1, marks=pytest.mark.slow)],
)
def test_no_checkpoint_holds_half_a_gradient(rule, windows_per_batch, val, tmp_path):
    """Saved at windows, batches and validations inside a segment, a run goes on from its start to the same bits."""
    copies, folder = Copies(tmp_path / "copies", windows=True), tmp_path / "run" / "version_0"
    options = {"val": val, **RULES[rule]}
    early = EarlyStopping("val/nats_per_token", patience=50)
    options["callbacks"] = [early, copies, EMAWeightAveraging(decay=0.7)]
    trainer, module, steps = fit_text(folder, windows_per_batch, per_step, **options)
    expected, whole_curve, waited = everything(trainer, module), curve(folder), early.wait_count
    assert 4 < len(steps.run) < EPOCHS * WINDOWS
    for path in copies.paths:
        early = EarlyStopping("val/nats_per_token", patience=50)
        options["callbacks"] = [early, EMAWeightAveraging(decay=0.7)]
        trainer, module, again = fit_text(folder, windows_per_batch, per_step, resume=path, **options)
        assert again.run == steps.run[int(path.name[:2]) :], path
        same(everything(trainer, module), expected)
        assert curve(folder) == whole_curve, path
        assert early.wait_count == waited, path


@pytest.mark.slow
@pytest.mark.parametrize("windows_per_step", [4, 2])
def test_nor_do_windows_that_will_be_repeated_count_for_a_callback_that_records_them(windows_per_step, tmp_path):
    def run(folder, resume=None, callbacks=()):
        adaptive = AdaptiveHorizon(max_relative_bias=0.3, max_k2=9, every_n_steps=1, num_places=1)
        options = {"k2": 7, "windows_per_step": windows_per_step, "callbacks": [adaptive, *callbacks], "resume": resume}
        trainer, module, _ = fit_text(folder, 4, per_step, **options)
        return everything(trainer, module), curve(folder), module.truncation.k2

    copies, folder = Copies(tmp_path / "copies", windows=True), tmp_path / "run" / "version_0"
    expected = run(folder, callbacks=[copies])
    assert sum("horizon/k2" in row for row in expected[1]) > 1
    for path in copies.paths:
        twice = Copies(tmp_path / "again" / path.stem, windows=True)
        continued = [run(folder, path, [twice])]
        if path.stem.endswith("window"):  # saved again before the gradient is complete
            continued.append(run(folder, twice.paths[1]))
        for end in continued:
            same(end[0], expected[0])
            assert end[1:] == expected[1:], path


@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_lanes_without_a_datamodule_know_what_must_not_change(windows_per_batch, tmp_path):
    folder = tmp_path / "run" / "version_0"
    fit_text(folder, windows_per_batch, per_step, 5)
    others = {
        r"windows_per_batch=\d, where the run to be resumed has windows_per_batch=\d": lambda _: plain(2),
        r"num_lanes=4, where the run to be resumed has num_lanes=3": lambda count: plain(count, LANES + 1),
        r"ids=75 ids with checksum \w+, where": lambda count: plain(count, seed=6),
    }
    for message, data in others.items():
        with pytest.raises(InputError, match=message):
            fit_text(folder, windows_per_batch, per_step, resume=folder / "checkpoints" / "last.ckpt", data=data)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plateau_compares_what_lightning_has_rounded(seed, tmp_path):
    """Every improvement counts, and the best value is kept by the schedule."""

    def every_improvement(optimizer):
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0)
        scheduler.monitor = "val/nats_per_token"
        return scheduler

    options = {"data": lambda count: plain(count, seed=seed), "val": 1.0}
    whole, again = tmp_path / "whole" / "version_0", tmp_path / "again" / "version_0"
    copies = Copies(tmp_path / "copies")
    trainer, module, _ = fit_text(whole, 4, every_improvement, callbacks=[copies], **options)
    expected, schedule = everything(trainer, module), trainer.lr_scheduler_configs[0].scheduler.state_dict()
    for path in copies.paths:
        trainer, module, _ = fit_text(again, 4, every_improvement, resume=path, **options)
        same(everything(trainer, module), expected)
        assert trainer.lr_scheduler_configs[0].scheduler.state_dict() == schedule


class Refusing(LightningDataModule):
    """Its data were not those of the checkpoint."""

    def train_dataloader(self):
        return batches(5, 4)

    def state_dict(self):
        return {"data": 1}

    def load_state_dict(self, state_dict):
        raise InputError("other data")


def test_a_resume_that_is_refused_leaves_nothing_for_the_next_fit(tmp_path):
    fit(Regression(k1=5), Refusing(), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    module = Regression(k1=5)
    with pytest.raises(InputError, match="other data"):
        fit(module, Refusing(), resume=tmp_path / "one.ckpt")
    trainer = fit(module, Refusing(), max_epochs=1)
    assert module.position.step == trainer.global_step == 13
    assert module.position.window == 13
