"""The amplifier example, run as a user runs it; and that its effect is one that needs a memory."""

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest
from processes import run_script, start, status_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "amplifier.py"
SMALL = ("--k1", 50, "--burn_in", 30, "--num_lanes", 7, "--hidden_size", 6, "--lr", 0.02)
SMALL += ("--num_seconds", 0.5, "--num_epochs", 5)  # 24,000 samples


# By mode, the windows of a piece, and the steps until 120,000 samples were targets: 120,000 * piece / (piece - 30) /
# (7 lanes * window), where a piece is of 400, 200 or 80 samples and a window of 50, 200 or 80.
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "windows", "steps"), [("carried", 8, 370), ("full", 4, 100), ("random", 1, 342)])
def test_every_mode_learns_from_as_many_targets(mode, windows, steps, in_tmp_path):
    """The input itself, taken for the output, has an ESR of .34 here."""
    status = status_of(start(run_script, EXAMPLE, "--mode", mode, "--windows_per_piece", windows, *SMALL, log="log"))
    printed = Path("log").read_text()
    assert status == 0, printed
    metrics = ast.literal_eval(printed.splitlines()[-1])
    assert metrics.keys() == {"ESR", "targets", "steps"}
    assert metrics["steps"] == steps
    assert metrics["targets"] == pytest.approx(120_000, rel=0.02)
    assert metrics["ESR"] < 0.15


def test_what_was_loud_changes_what_follows():
    """The same 30 ms differ after a loud and after a quiet note, and no longer do after three seconds of silence."""
    example = runpy.run_path(str(EXAMPLE))
    rate, amplified = example["RATE"], example["amplified"]
    note = 0.1 * np.sin(np.arange(0, 0.03, 1 / rate) * 2 * np.pi * 220)
    before = 0.8 * np.sin(np.arange(0, 0.1, 1 / rate) * 2 * np.pi * 110)

    def after(loudness, pause):
        sound = np.concatenate([loudness * before, np.zeros(int(pause * rate)), note])
        return amplified(sound.astype(np.float32))[-len(note) :]

    quiet, loud, later = after(0.1, 0.05), after(1.0, 0.05), after(1.0, 3.0)
    energy = np.square(quiet).mean()
    assert np.square(loud - quiet).mean() > 0.1 * energy
    assert np.square(loud).mean() < energy
    assert np.square(later - after(0.1, 3.0)).mean() < 1e-6 * energy


def test_no_function_of_the_present_sample_gives_the_output():
    example = runpy.run_path(str(EXAMPLE))
    sound = example["plucked"](150_000, 3)
    output = example["amplified"](sound)
    assert np.abs(sound).max() < 2
    assert np.isfinite(output).all()
    bins = np.digitize(sound, np.quantile(sound, np.linspace(0, 1, 300)))
    best = np.bincount(bins, output) / np.maximum(1, np.bincount(bins))
    assert np.square(output - best[bins]).sum() > 0.08 * np.square(output).sum()
