"""The echo-state example, run as a user runs it, and its series beside their equations."""

import ast
import runpy
from pathlib import Path

import pytest
from processes import run_script, start, status_of
from torch.testing import assert_close

EXAMPLE = Path(__file__).parents[2] / "examples" / "echo_state.py"
MACKEY_GLASS = ("mackey_glass", "--num_steps", 900, "--burn_in", 150, "--num_starts", 3)
NARMA10 = ("narma10", "--num_steps", 900, "--burn_in", 150)


# A mean has an NRMSE of 1. With one unit the readout sees little more than the present input.
@pytest.mark.parametrize(
    ("task", "worse", "better", "bounds"),
    [
        (MACKEY_GLASS, 1, 90, {"NRMSE": 0.002, "NRMSE_84": 0.1}),
        (NARMA10, 1, 70, {"NRMSE": 0.35, "NMSE": 0.1225}),
    ],
)
def test_units_reduce_the_error(task, worse, better, bounds, in_tmp_path):
    errors = []
    for num_units in (worse, better):
        options = (*task, "--num_units", num_units)
        status = status_of(start(run_script, EXAMPLE, *options, log="log"))
        printed = Path("log").read_text()
        assert status == 0, printed
        errors.append(ast.literal_eval(printed.splitlines()[-1]))
    assert all(errors[1][name] < bound < errors[0][name] for name, bound in bounds.items()), errors


def test_the_series_follow_their_equations():
    example = runpy.run_path(str(EXAMPLE))
    x = example["mackey_glass_series"](20_000, 3)
    assert_close(x.var().item(), 0.0507, rtol=0.05, atol=0.0)
    u, y = example["narma10_series"](500, 4)
    for t in range(20, 500):
        past = y[t - 10 : t]  # targets are one step ahead of inputs
        expected = 0.3 * past[-1] + 0.05 * past[-1] * past.sum() + 1.5 * u[t - 9] * u[t] + 0.1
        assert_close(y[t], expected)
