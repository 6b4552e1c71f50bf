"""Several processes when something goes wrong: signals, deaths, full disks, losses that are no numbers."""

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from command_line import SMALL_RUN
from letters import strided
from lightning.pytorch import Callback, Trainer
from processes import TESTS, run_script, start, status_of, together, wait_until
from tasks import Batches, Regression, windows_of

from lit_tbptt import (
    GRU,
    DivergenceError,
    InputError,
    LitLanguageModel,
    Rank,
    RunCheckpoint,
    SequenceLanes,
    SignalHandling,
    TextLanesDataModule,
)
from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint

TRAIN = TESTS.parent / "train.py"
CHECKPOINTS = Path("runs/default/version_0/checkpoints")
WAVE = torch.arange(40).sin()
STEPS = 10**6  # more than it comes to before it is stopped


def runs(pid):
    """Tells whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def running(words_folder, in_tmp_path):
    """A run of two processes, the second started by Lightning, with a checkpoint; and the number of the second."""
    steps = [f"--trainer.max_steps={STEPS}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    arguments = ["fit", f"--data.path={words_folder}", *SMALL_RUN, *steps, "--checkpoint.every_n_steps=3"]
    process = start(run_script, TRAIN, *arguments, log="log")
    wait_until(lambda: (CHECKPOINTS / "last.ckpt").exists() or not process.is_alive())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = [int(pid) for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    yield process, second
    for pid in (process.pid, second):
        if runs(pid):
            os.kill(pid, signal.SIGKILL)
    process.join()


def test_a_signal_to_one_process_saves_and_stops_all_and_one_alone_goes_on(running):
    process, second = running
    os.kill(second, signal.SIGTERM)
    assert status_of(process) == 143, Path("log").read_text()
    step = read_checkpoint(CHECKPOINTS / "last.ckpt")["global_step"]
    assert 0 < step < STEPS
    assert Path("log").read_text().count(f"stopped by SIGTERM after optimizer step {step}; saved") == 1
    wait_until(lambda: not runs(second))
    main(["fit", "--ckpt_path=last", f"--trainer.max_steps={step + 5}", "--trainer.devices=1"])
    assert read_checkpoint(CHECKPOINTS / "last.ckpt")["global_step"] == step + 5


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_dies_takes_the_other_along(running, killed):
    process, second = running
    pids = [process.pid, second]
    os.kill(pids[killed], signal.SIGKILL)
    assert status_of(process) != 0
    wait_until(lambda: not runs(second))


def lanes_of(rank, nothing):
    """Three lanes for each process; in one of them process 1 meets what is no number."""
    inputs = torch.sin(torch.arange(40.0) / 3 + torch.arange(3 * rank, 3 * rank + 3)[:, None])
    if rank == 1:
        inputs[1, nothing:] = float("nan")
    return Batches(windows_of(inputs, inputs.roll(-1, 1), 5))


def trainer_in(folder, num_ranks, *callbacks):
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        callbacks=list(callbacks),
    )


def diverge(folder):
    trainer = trainer_in(folder, 2)
    with pytest.raises(DivergenceError, match="the training loss is nan at optimizer step 4"):
        trainer.fit(Regression(k1=5), lanes_of(trainer.global_rank, 17))
    return True


def test_all_processes_see_that_the_loss_of_one_is_no_number(tmp_path):
    assert together(tmp_path, 2, diverge, tmp_path) == [True, True]


def fill_the_disk(folder):
    """Saves after every step; at steps 3 to 5 nothing can be written."""
    saved = []

    def save(value, path, **options):
        if isinstance(value, dict):  # and not a tensor on its way to process 0
            saved.append(value["global_step"])
            if 3 <= saved[-1] <= 5:
                raise OSError("no space left on the disk")
        really(value, path, **options)

    really, torch.save = torch.save, save
    trainer = trainer_in(folder, 2, RunCheckpoint(every_n_steps=1))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.fit(Regression(k1=5), lanes_of(trainer.global_rank, 40))
    said = sum("no space left on the disk" in str(warning.message) for warning in warned)
    return saved, trainer.global_step, said


def test_a_full_disk_stops_no_process(tmp_path):
    assert together(tmp_path, 2, fill_the_disk, tmp_path) == [([*range(1, 9), 8], 8, 3), ([], 8, 0)]
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]


def short(num_windows):
    inputs = torch.rand(2, 5 * num_windows)
    return Batches(windows_of(inputs, inputs, 5))


class Signalled(Callback):
    """Sends a signal to process 1 when the last window is done."""

    def on_train_end(self, trainer, module):
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Opinions(Callback):
    """Logs a metric that every process finds another value of."""

    def on_validation_epoch_end(self, trainer, module):
        self.log("val/own", trainer.global_step * (1.0 if trainer.global_rank else -1.0))


def odd_runs(folder):
    """Runs in which the processes do not meet the same."""
    found = {}
    signalled = trainer_in(folder / "signalled", 2, SignalHandling(), Signalled(), RunCheckpoint())
    with pytest.raises(SystemExit) as stopped:
        signalled.fit(Regression(k1=5), lanes_of(signalled.global_rank, 40))
    found["a signal after the last window"] = stopped.value.code

    warnings.filterwarnings("ignore", ".*sync_dist=True")
    opinions = trainer_in(folder / "opinions", 2, Opinions(), SignalHandling(), RunCheckpoint(monitor="val/own"))
    # Process 1 has two more batches to validate on.
    rank = opinions.global_rank
    opinions.fit(Regression(k1=5), lanes_of(rank, 40), short(3 + 2 * rank))
    found["metrics and validations that differ"] = opinions.checkpoint_callback.scores

    whole = strided(["abcdefghij" * 3], 4, 5)
    refused = trainer_in(folder / "refused", 2)
    with pytest.raises(InputError, match=r"local_lanes=range\(0, 4\) of num_lanes=4 in process . of 2") as error:
        refused.fit(Regression(k1=5), whole)
    found["lanes for one process"] = "Rank(trainer.global_rank, trainer.world_size).share" in str(error.value)

    few = trainer_in(folder / "few", 2)
    with pytest.raises(InputError, match="num_lanes=1 with 2 processes: each needs a lane to train on"):
        few.fit(Regression(k1=5), SequenceLanes([{"inputs": WAVE, "targets": WAVE}], 1, 5, rank=Rank(rank, 2)))

    for number, text in enumerate(["", "abcdefgh"]):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"train-{number}.jsonl").write_text(f'{{"text": "{text}"}}\n' * 5)
    data = TextLanesDataModule(
        str(folder / "texts"), num_lanes=4, k1=5, streaming=True, num_readers=2, tokenizer="char", val_fraction=0
    )
    half = trainer_in(folder / "half", 2)
    half.fit(LitLanguageModel(GRU(7), k1=5), data)
    found["no text for one process"] = (half.global_step, data.tokenizer.vocabulary_size)
    return found


def test_processes_that_do_not_meet_the_same_stay_together(tmp_path):
    first, second = together(tmp_path, 2, odd_runs, tmp_path)
    assert first == second
    assert first == {
        "a signal after the last window": 143,
        "metrics and validations that differ": [-8.0],
        "lanes for one process": True,
        "no text for one process": (6, 10),
    }


def fit_forked(folder):
    inputs = torch.rand(3, 40)
    model, options = Regression(k1=5), {"logger": False, "enable_progress_bar": False, "default_root_dir": folder}
    before = [part.clone() for part in model.parameters()]
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", callbacks=[RunCheckpoint()], **options
    )
    trainer.fit(model, Batches(windows_of(inputs, inputs, 5)))
    assert not any(map(torch.equal, before, model.parameters()))


def test_processes_that_are_forked_bring_the_weights_back(tmp_path):
    process = start(fit_forked, tmp_path, log=tmp_path / "log")
    assert status_of(process) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
