"""The command `plot`: plots the curves of runs and compares them. It imports neither torch nor Lightning."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from lit_tbptt.cli.curves import draw_curves
from lit_tbptt.cli.logged_run import METRICS, LoggedRun, find_runs, labels, read_run
from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import local

PICTURE = "curves.png"
_FORMATS = (".png", ".pdf", ".svg")
_OTHER_FORMATS = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".eps", ".ps")
_LONGEST_CELL = 40


def plot(runs: list[str], /, *, out: str | None = None) -> None:
    """Plot the curves of one or more runs in one picture, and print a table that compares them.

    Args:
        runs: Each run's folder, its metrics.csv, or its name in runs/<config name>/, such as version_0.
        out: The picture: a folder, or a file that ends in .png, .pdf or .svg. Left out: curves.png in the folder of
            the run; for several runs, in the working directory.

    Raises:
        InputError: There is no such run, the picture cannot be written, or matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise InputError("plot draws with matplotlib, which is missing: pip install matplotlib")
    found = find_runs(runs)
    file = _picture(found, out)
    try:
        draw_curves(found, file)
    except OSError as error:
        raise InputError(f"out={str(file.parent)!r}: {file} cannot be written: {error.strerror or error}") from error
    print(f"{comparison(found)}\n\ncurves: {file}")


def draw_finished_run(folder: Path) -> None:
    """Draws the curves of a run into its folder, if matplotlib is installed. A failure is one line, not an error."""
    metrics = folder / METRICS
    try:
        if metrics.is_file() and find_spec("matplotlib") is not None:
            draw_curves([read_run(metrics)], folder / PICTURE)
    except Exception as error:
        print(f"{PICTURE} could not be drawn ({type(error).__name__}: {error})", file=sys.stderr)


def _picture(runs: Sequence[LoggedRun], out: str | None) -> Path:
    if out is None:
        return (runs[0].folder if len(runs) == 1 else Path()) / PICTURE
    path = local(out)
    if path.suffix.lower() in _OTHER_FORMATS and not path.is_dir():
        raise InputError(f"out={out!r}: must be a folder, or a file that ends in {', '.join(_FORMATS)}")
    return path if path.suffix in _FORMATS and not path.is_dir() else path / PICTURE


def comparison(runs: Sequence[LoggedRun]) -> str:
    """Formats a table of the settings in which runs differ, their best validation, last loss, speed and length.

    One column per run, or one row per run if there are many.
    """
    rows = [["", *labels(runs)], *_settings_that_differ(runs), *_results(runs)]
    if len(runs) > len(rows):
        rows = [list(row) for row in zip(*rows, strict=True)]
    cells = [[_shortened(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *values in cells:
        right = (f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True))
        lines.append("  ".join([f"{name:{widths[0]}}", *right]))
    return "\n".join(lines)


def _shortened(cell: str) -> str:
    return cell if len(cell) <= _LONGEST_CELL else f"{cell[: _LONGEST_CELL - 3]}..."


def _settings_that_differ(runs: Sequence[LoggedRun]) -> list[list[str]]:
    known = [run for run in runs if run.settings]  # the others have no config.yaml
    names = dict.fromkeys(name for run in known for name in run.settings)
    differ = (name for name in names if len({run.settings.get(name) for run in known}) > 1)
    return [[name, *(run.settings.get(name, "-") if run.settings else "?" for run in runs)] for name in differ]


def _results(runs: Sequence[LoggedRun]) -> list[list[str]]:
    rows = []
    choose = {"min": min, "max": max}
    for name, mode in dict.fromkeys([*(run.monitor for run in runs), ("val/bits_per_byte", "min")]):
        values = [_values(run, name) for run in runs]
        if any(values):
            rows.append([f"best {name}", *(_number(choose[mode](each)) if each else "" for each in values)])
    for name in dict.fromkeys(f"train/{run.loss}" for run in runs):
        values = [_values(run, name) for run in runs]
        rows.append([f"last {name}", *(_number(each[-1]) if each else "" for each in values)])
    speeds = [_values(run, "train/tokens_per_second") for run in runs]
    rows.append(["tokens/s, median", *(f"{median(speed):,.0f}" if speed else "" for speed in speeds)])
    rows.append(["tokens", *(f"{run.num_tokens:,}" for run in runs)])
    return rows


def _values(run: LoggedRun, name: str) -> list[float]:
    return run.metrics[name].values if name in run.metrics else []


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or value == 0 else f"{value:.4g}"
