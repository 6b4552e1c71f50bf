"""Signals to a run from the command line."""

import signal
import subprocess
import sys
import time

import pytest
from command_line import RUN, last

from lit_tbptt.cli import main


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_signals_save_and_stop_or_go_on(first_run, number, status):
    arguments = [*first_run, "--trainer.max_steps=400", "--lr_scheduler.num_steps=400"]
    script = f"import sys; sys.argv = ['train.py', *{arguments!r}]; from lit_tbptt.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = RUN / "metrics.csv"
    deadline = time.monotonic() + 100
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == status, errors
    step = last()["global_step"]
    if status:
        assert 0 < step < 400
        assert f"stopped by {number.name} after optimizer step {step}; saved" in errors
        main(["fit", "--ckpt_path=last"])
    assert last()["global_step"] == 400
