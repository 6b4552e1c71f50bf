"""Signals to a run from the command line."""

import os
import signal
from pathlib import Path

import pytest
from command_line import RUN, curve, last
from lightning.pytorch import Callback
from processes import TESTS, run_script, start, status_of, wait_until

from lit_tbptt.cli import main

LAST = RUN / "checkpoints" / "last.ckpt"
ENDLESS = ["--trainer.max_steps=1000000", "--trainer.limit_val_batches=0"]


@pytest.fixture
def running(first_run):
    """A run that has logged, has saved nothing, and does not end by itself."""
    process = start(run_script, TESTS.parent / "train.py", *first_run, *ENDLESS, log="log")
    wait_until(lambda: (RUN / "metrics.csv").exists() or not process.is_alive())
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(running, number, status):
    os.kill(running.pid, number)
    assert status_of(running) == status, Path("log").read_text()
    step = last()["global_step"]
    assert step > 0
    assert f"stopped by {number.name} after optimizer step {step}; saved" in Path("log").read_text()
    main(["fit", "--ckpt_path=last", f"--trainer.max_steps={step + 7}"])
    assert last()["global_step"] == step + 7


class Signal(Callback):
    """Sends a signal to its own process when a test begins its second batch."""

    def __init__(self, name: str):
        self.name = name

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            os.kill(os.getpid(), signal.Signals[self.name])


# Without a handler, SIGTERM itself ends the process; a shell makes 143 of it.
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", -15), ("SIGINT", 130)])
@pytest.mark.parametrize("options", [[], ["--model.evaluation=DynamicEvaluation", "--model.evaluation.rule=sgd"]])
def test_a_signal_ends_an_evaluation(first_run, name, status, options):
    main(first_run)
    arguments = [
        "test",
        "--ckpt_path=last",
        f"--trainer.callbacks={__name__}.Signal",
        f"--trainer.callbacks.name={name}",
    ]
    process = start(run_script, TESTS.parent / "train.py", *arguments, *options, log="log")
    assert status_of(process) == status, Path("log").read_text()
    assert "nats_per_token" not in Path("log").read_text()


def test_a_signal_saves_and_the_run_goes_on(running):
    os.kill(running.pid, signal.SIGUSR1)
    wait_until(lambda: LAST.exists() or not running.is_alive())
    saved = last()["global_step"]
    wait_until(lambda: int(curve()[-1]["step"]) > saved + 3 or not running.is_alive())
    os.kill(running.pid, signal.SIGTERM)
    assert status_of(running) == 143, Path("log").read_text()
    assert last()["global_step"] > saved


def test_after_a_fit_signals_do_what_they_did_before(first_run):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    main([*first_run, "--trainer.max_steps=3"])
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(SystemExit):
        main([*first_run, "--trainer.max_steps=3", "--optimizer.lr=nan"])
    assert [signal.getsignal(number) for number in numbers] == before
