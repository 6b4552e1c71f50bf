import ctypes
import logging
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import FIRST_RUN
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from processes import start, status_of

from lit_tbptt.cli import main
from lit_tbptt.cli.process import keep_freed_memory, quiet_lightning

ROOT = Path(__file__).parent.parent.parent
BLOCKS, MEGABYTES = 5, 20


def count_faults(file):
    """Writes how many pages the system gives for blocks of memory, again and again, and how many are kept of 300 MB."""
    ctypes.CDLL(None).mallopt(-3, 2**16)  # what the variable below does where it is set before the start
    keep_freed_memory()
    counts = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _ = [torch.ones(MEGABYTES * 2**18) for _ in range(BLOCKS)]
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del _
    before = resident_pages()
    torch.ones(300 * 2**18)
    Path(file).write_text(f"{min(counts[1:])} {resident_pages() - before}")


def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself")
def test_freed_memory_is_used_again_unless_the_user_has_set_the_allocator(tmp_path):
    measured = {}
    for chosen, variables in {"ours": {}, "the user's": {"MALLOC_MMAP_THRESHOLD_": "65536"}}.items():
        file = tmp_path / chosen
        assert status_of(start(count_faults, file, log=tmp_path / "log", variables=variables)) == 0
        measured[chosen] = [int(count) for count in file.read_text().split()]
    again, kept = measured["ours"]
    assert again < 100
    assert kept * resource.getpagesize() < 30 * 2**20
    again, _ = measured["the user's"]
    assert again > 25_000


def test_lightning_says_only_what_tells_something(caplog):
    quiet_lightning()
    caplog.set_level(logging.INFO)
    Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=1)
    seed_everything(3)
    assert not caplog.messages
    kept = ["GPU available: True (cuda), used: True", "Using bfloat16 Automatic Mixed Precision (AMP)"]
    for message in kept:
        rank_zero_info(message)
    assert caplog.messages == kept
    with pytest.warns(UserWarning, match="GPU available: False"):
        rank_zero_warn("GPU available: False, and that is a warning")


def test_a_fit_begins_with_what_is_ours(words_folder, tmp_path):
    log = tmp_path / "log"
    options = ["fit", f"--data.path={words_folder}", *FIRST_RUN, "--trainer.max_steps=2"]
    assert status_of(start(main, options, log=log, folder=tmp_path)) == 0, log.read_text()
    printed = log.read_text()
    for noise in ("available", "Tip", "Seed", "Restoring", "Loaded model", "`Trainer"):
        assert noise not in printed, printed
    assert printed.count("nats_per_token") == 1


def test_ctrl_c_ends_a_command_while_it_is_imported(tmp_path):
    # A module that is imported and, as some of torch's are, loses what is raised meanwhile.
    (tmp_path / "loses.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    script = f"""
import signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
from lit_tbptt.cli.process import importing
signal.signal(signal.SIGINT, signal.default_int_handler)
with importing():
    import {{}}
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    lost, kept = (
        subprocess.run([sys.executable, "-c", script.format(name)], capture_output=True, text=True)
        for name in ("loses", "json")
    )
    assert (lost.returncode, lost.stdout, lost.stderr) == (-signal.SIGINT, "", "")
    assert (kept.returncode, kept.stdout, kept.stderr) == (0, "True\n", "")
