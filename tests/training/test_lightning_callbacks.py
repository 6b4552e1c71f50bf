"""Runs with Lightning's own callbacks: stopped anywhere and continued, they end as the run that never was."""

import os
import shutil
import signal
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
import torch
from command_line import curve
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from resuming import WINDOWS, build, everything, fit_text, monitored, per_epoch, per_step, plain, same
from torch.utils._pytree import tree_flatten

from lit_tbptt import AdaptiveHorizon, GradientHorizon, InputError, NonMonotonicAveraging, RunCheckpoint, SignalHandling
from lit_tbptt.files.checkpoint import read_checkpoint

# Of a ModelCheckpoint whose run is continued.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
LOSS = "val/nats_per_token"


class Snapshots(RunCheckpoint):
    """Saves after every step too, and copies the run's folder after every save."""

    def __init__(self, folder, copies):
        super().__init__(every_n_steps=1)
        self.run, self.copies, self.saved = folder, copies, []

    def save_last(self, trainer):
        super().save_last(trainer)
        if self.copies is not None:
            self.saved.append(shutil.copytree(self.run, self.copies / f"{len(self.saved):03}-{trainer.global_step:02}"))


class Counting(Callback):
    """A callback of the user's own, with a state."""

    def __init__(self):
        self.counts = Counter()

    def on_step_end(self, trainer, module):
        self.counts["step"] += 1

    def on_validation_end(self, trainer, module):
        self.counts["validation"] += 1

    def on_train_epoch_end(self, trainer, module):
        self.counts["epoch"] += 1

    def state_dict(self):
        return dict(self.counts)

    def load_state_dict(self, state):
        self.counts = Counter(state)


class AtTheSecond(NonMonotonicAveraging):
    """Averages from the second validation on, although the loss falls."""

    def should_start(self, loss):
        return len(self.losses) == 1


class Stopping(Callback):
    """Stops the run after a step, once."""

    def __init__(self, how, step):
        self.how, self.step = how, step

    def on_step_end(self, trainer, module):
        if trainer.global_step == self.step and self.how == "exception":
            raise RuntimeError("stopped")
        if trainer.global_step == self.step and self.how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)


CALLBACKS = {
    "EarlyStopping": lambda folder: EarlyStopping(LOSS, patience=1, min_delta=10.0),
    "EarlyStopping of training": lambda folder: EarlyStopping("train/nats_per_token", patience=7, strict=False),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder / "own", "{step}", LOSS, save_top_k=2),
    "ModelCheckpoint of steps": lambda folder: ModelCheckpoint(
        folder / "own", "{step}", every_n_train_steps=3, save_top_k=-1
    ),
    "EMAWeightAveraging": lambda folder: EMAWeightAveraging(decay=0.7),
    "EMAWeightAveraging of epochs": lambda folder: EMAWeightAveraging(
        update_every_n_steps=3, update_starting_at_epoch=0
    ),
    "WeightAveraging": lambda folder: WeightAveraging(),
    "NonMonotonicAveraging": lambda folder: AtTheSecond(),
    "LearningRateMonitor": lambda folder: LearningRateMonitor(),
    "GradientHorizon": lambda folder: GradientHorizon(every_n_steps=3),
    "AdaptiveHorizon": lambda folder: AdaptiveHorizon(0.3, max_k2=9, every_n_steps=3, num_places=2),
    "Timer": lambda folder: Timer("01:00:00:00"),
    "ModelSummary": lambda folder: ModelSummary(2),
    "RichProgressBar": lambda folder: RichProgressBar(),
    "a user's own": lambda folder: Counting(),
}
# Seconds, each of them; and callbacks that change little.
LONG = (
    *("GradientHorizon", "EMAWeightAveraging of epochs", "WeightAveraging"),
    *("Timer", "ModelSummary", "RichProgressBar", "LearningRateMonitor", "a user's own"),
    *("ModelCheckpoint of steps", "EarlyStopping of training", "AdaptiveHorizon"),
)


def test_evaluations_after_a_fit_are_those_of_the_average(tmp_path):
    folder = tmp_path / "run" / "version_0"
    trainer, module, _ = fit_text(folder, 4, per_step, callbacks=[EMAWeightAveraging(decay=0.7)])
    last, (_, validation) = folder / "checkpoints" / "last.ckpt", plain(4)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    average = build(per_step, 7)
    average.load_state_dict(read_checkpoint(last)["state_dict"])
    for kind in ("validate", "test", "validate"):
        ours = getattr(trainer, kind)(module, validation, ckpt_path=last, verbose=False)
        assert ours == getattr(Trainer(**options), kind)(average, validation, verbose=False)


class Case:
    """A run that is stopped and continued."""

    def __init__(self, folder, names, windows_per_batch, schedule, validation):
        self.folder = folder / "run" / "version_0"
        self.names, self.options = names, {"k2": 7, "val": validation, "save": False}
        self.batches = (windows_per_batch, schedule)

    def run(self, max_steps=-1, resume=None, copies=None, stopping=()):
        self.snapshots = Snapshots(self.folder, copies)
        own = [CALLBACKS[name](self.folder) for name in self.names]
        callbacks = [*own, *stopping, self.snapshots]
        trainer, module, _ = fit_text(
            self.folder, *self.batches, max_steps, resume, callbacks=callbacks, **self.options
        )
        states = [callback.state_dict() for callback in own if not isinstance(callback, Timer)]
        for state in states:
            state.pop("current_score", None)  # ModelCheckpoint saves it, and does not restore it
        kept = {path.name: read_checkpoint(path)["state_dict"] for path in self.folder.glob("*/*.ckpt")}
        return everything(trainer, module), states, kept, curve(self.folder)

    def resumed(self):
        return self.run(resume=self.folder / "checkpoints" / "last.ckpt")


def equal(found, expected, extra_files=False):
    same(found[0], expected[0])
    (states, structure), (others, other_structure) = tree_flatten(found[1]), tree_flatten(expected[1])
    assert structure == other_structure
    assert all(np.array_equal(state, other) for state, other in zip(states, others, strict=True)), (states, others)
    assert found[2].keys() >= expected[2].keys() if extra_files else found[2].keys() == expected[2].keys()
    for file, weights in expected[2].items():
        if file != "previous.ckpt":  # a stop saves once more
            assert all(torch.equal(weights[name], found[2][file][name]) for name in weights), file
    assert found[3] == expected[3]


def killed_at_every_save(case, folder):
    expected = case.run(copies=folder / "copies")
    for copy in case.snapshots.saved[:-1]:  # at the last one nothing is left to do
        shutil.rmtree(case.folder)
        shutil.copytree(copy, case.folder)
        yield copy.name, case.resumed(), expected


def stopped(how, case, steps=(1, 3, 4, 6, 7, 9, 12)):
    expected = case.run()
    end = expected[0][1][1]
    for step in steps[how == "exception" :]:  # after the first step nothing would have been saved
        if step >= end:
            break
        shutil.rmtree(case.folder)
        if how == "max_steps":
            try:
                case.run(step)
            except RuntimeError as error:
                # Of EarlyStopping, where Lightning ends an epoch before its validation. The run is saved by then.
                if "Early stopping conditioned on metric" not in str(error):
                    raise
        else:
            with pytest.raises(SystemExit if how == "Ctrl-C" else RuntimeError):
                case.run(stopping=[Stopping(how, step), *([SignalHandling()] if how == "Ctrl-C" else ())])
        yield f"step {step}", case.resumed(), expected


def check(folder, name, second, validation, stop, windows_per_batch, schedule):
    names = [name] if second in (None, name) else [name, second]
    case = Case(folder, names, windows_per_batch, schedule, validation)
    if sum("Averaging" in name for name in names) > 1:
        # Of two of one class Lightning says so.
        message = "each keeps its average as the model's weights; use one of them|more than one stateful callback"
        with pytest.raises((InputError, RuntimeError), match=message):
            case.run()
        return
    runs = killed_at_every_save(case, folder) if stop == "kill" else stopped(stop, case)
    for place, found, expected in runs:
        try:
            # What Lightning does at the end of a run that max_steps breaks off stays in ModelCheckpoint's folder.
            equal(found, expected, extra_files=stop == "max_steps")
        except BaseException as error:
            error.add_note(f"continued from {place}")
            raise


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CALLBACKS]
)
def test_a_callback_in_a_run_that_is_killed(name, tmp_path):
    check(tmp_path, name, None, 1.0, "kill", 4, per_epoch)


def test_a_run_that_was_stopped_inside_an_epoch_ends_where_it_was_to_end(tmp_path):
    check(tmp_path, "EarlyStopping", None, 2, "kill", 1, per_epoch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("validation", "windows_per_batch"),
    [(1, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 1), (0.5, 1), (0.5, 4)])],
)
def test_the_learning_rate_after_a_kill(windows_per_batch, validation, tmp_path):
    check(tmp_path, "LearningRateMonitor", None, validation, "kill", windows_per_batch, per_step)


FACTORS = [
    list(CALLBACKS),
    [None, *CALLBACKS],
    [1.0, 0.5, 2],  # an epoch, half an epoch, two batches
    ["kill", "max_steps", "exception", "Ctrl-C"],
    [1, 4],
    [per_step, per_epoch, monitored],
]


def pairwise(factors):
    """Returns cases in which every two values of two factors meet."""
    pairs = list(combinations(range(len(factors)), 2))
    open_pairs = {(a, b, x, y) for a, b in pairs for x, y in product(factors[a], factors[b])}
    cases = []
    for first, second in product(factors[0], factors[1]):
        case = [first, second]
        for place in range(2, len(factors)):
            met = [sum((a, place, case[a], value) in open_pairs for a in range(place)) for value in factors[place]]
            case.append(factors[place][met.index(max(met))])
        open_pairs -= {(a, b, case[a], case[b]) for a, b in pairs}
        cases.append(case)
    assert not open_pairs
    return cases


def name_of(value):
    return getattr(value, "__name__", str(value))


@pytest.mark.slow
@pytest.mark.parametrize("case", pairwise(FACTORS), ids=lambda case: " | ".join(name_of(value) for value in case))
def test_the_matrix(case, tmp_path):
    check(tmp_path, *case)


@pytest.mark.parametrize(("max_steps", "validation"), [(WINDOWS, 1.0), (4, 0.5)])  # at an epoch's end, or inside
def test_a_run_killed_in_its_last_validation_makes_it_again(max_steps, validation, tmp_path):
    """The epoch's step of the schedule, the validation and best.ckpt are what the run that goes on has."""

    class Killed(Callback):
        def on_validation_batch_end(self, trainer, *args):
            if trainer.global_step == max_steps:
                raise RuntimeError("killed")

    case = Case(tmp_path, [], 4, per_epoch, validation)
    expected = case.run(max_steps)
    shutil.rmtree(case.folder)
    with pytest.raises(RuntimeError, match="killed"):
        case.run(max_steps, stopping=[Killed()])
    equal(case.run(max_steps, resume=case.folder / "checkpoints" / "last.ckpt"), expected)
    assert "best.ckpt" in expected[2]
