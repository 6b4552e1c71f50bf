"""Draws curves.png: the logged metrics of one or more runs, against the number of training tokens."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_tbptt.cli.logged_run import LoggedRun, Series, labels
from lit_tbptt.files.atomic import replacing

# Okabe and Ito's colours, which colour-blind readers can distinguish; the ones that are pale on white come last.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS, _DASHES = "os^DvPX", ("-", "--", "-.", ":")
_INK, _GRID = "#222222", "#DDDDDD"
# Fraction at the start of a run, where the loss falls steeply, that is ignored for the limits of the axis.
_LEFT_OUT = 0.1


class _Panel(NamedTuple):
    """A panel of the picture.

    Attributes:
        title: The title above it.
        train: The training metric; `{loss}` stands for the name of the run's loss.
        val: The validation metric, if there is one.
    """

    title: str
    train: str
    val: str | None = None

    def series(self, run: LoggedRun) -> list[Series | None]:
        names = (name and name.format(loss=run.loss) for name in (self.train, self.val))
        return [run.metrics.get(name) if name else None for name in names]


_LARGE = (
    _Panel("loss", "train/{loss}", "val/{loss}"),
    _Panel("bits per byte", "train/bits_per_byte", "val/bits_per_byte"),
)
_SMALL = (
    _Panel("learning rate", "train/lr"),
    _Panel("gradient norm, before clipping", "train/gradient_norm"),
    _Panel("tokens per second", "train/tokens_per_second"),
)
_HORIZON = (_Panel("k2", "horizon/k2"), _Panel("relative bias, estimated", "horizon/relative_bias"))
_ROWS = (_LARGE, _SMALL, _HORIZON)


def draw_curves(runs: Sequence[LoggedRun], file: Path) -> None:
    """Draws runs on top of each other, without the panels for which no run has data.

    Args:
        runs: At least one run.
        file: The picture: .png, .pdf or .svg.
    """
    # Imported here, because matplotlib is optional.
    from matplotlib import style

    with warnings.catch_warnings(), style.context("default"):  # independent of the user's style
        warnings.simplefilter("ignore")  # for characters missing from the font
        figure = _figure(runs)
        with replacing(file) as beside:
            figure.savefig(beside, format=file.suffix.removeprefix("."), dpi=120)


def _figure(runs: Sequence[LoggedRun]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [[panel for panel in row if any(any(panel.series(run)) for run in runs)] for row in _ROWS]
    rows = [row for row in rows if row]
    heights = [1.5 if row[0] in _LARGE else 1 for row in rows]
    # Opaque, because the background of a viewer may be dark.
    figure = Figure(figsize=(11, 1 + 2.5 * sum(heights)), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), 6, height_ratios=heights)
    for number, row in enumerate(rows):
        width = 6 // len(row)
        for place, panel in enumerate(row):
            axes = figure.add_subplot(grid[number, place * width : (place + 1) * width])
            _draw(axes, panel, runs)
    _name_runs(figure, labels(runs))
    return figure


def _draw(axes: Any, panel: _Panel, runs: Sequence[LoggedRun]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    drawn: list[Series] = []
    for number, run in enumerate(runs):
        for split, series in zip(("train", "validation"), panel.series(run), strict=True):
            if series is not None:
                look = _line(number, split, len(series.tokens), len(runs) == 1)
                if panel.train == "train/lr":  # often identical, so lines would hide each other
                    look |= {"linestyle": _DASHES[number % len(_DASHES)], "alpha": 1, "linewidth": 1.6}
                elif panel.train == "horizon/k2":  # it stays the same until it is chosen again
                    look |= {"drawstyle": "steps-post"}
                axes.plot(*series, **look)
                drawn.append(series)
    axes.set_title(panel.title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel("tokens", color=_INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.val is not None:
        axes.set_ylim(*_limits(drawn))
        if panel.title == "loss":
            names = dict.fromkeys(run.loss.replace("_", " ") for run in runs)
            axes.set_ylabel(", ".join(names), color=_INK)
        _name_splits(axes, len(runs) == 1)
    elif "norm" in panel.train:
        if any(value > 0 for series in drawn for value in series.values):
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep="") if "second" in panel.train else "{x:g}")


def _line(number: int, split: str, num_points: int, alone: bool) -> dict[str, Any]:
    """Returns the style of a curve: colours distinguish runs, or the splits of a single run."""
    validation = split == "validation"
    colour = (number + (alone and validation)) % len(_COLOURS)
    look: dict[str, Any] = {"color": _COLOURS[colour], "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)]}
    if validation or num_points == 1:
        look |= {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 5, "markevery": max(1, num_points // 20)}
    if validation:
        return look | {"linewidth": 1.8, "zorder": 3}
    return look | {"linewidth": 1.2, "alpha": 1.0 if alone else 0.7}


def _limits(drawn: Sequence[Series]) -> tuple[float, float]:
    """Returns the axis limits for a loss: everything except the high values at the beginning."""
    begun = _LEFT_OUT * max(tokens[-1] for tokens, _ in drawn)
    late = [
        value
        for tokens, values in drawn
        for token, value in zip(tokens, values, strict=True)
        if token >= begun or token == tokens[-1]
    ]
    low, high = min(value for _, values in drawn for value in values), max(late)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _name_splits(axes: Any, alone: bool) -> None:
    from matplotlib.lines import Line2D

    looks = [_line(0, split, 1 if split == "validation" else 2, alone) for split in ("train", "validation")]
    handles = [Line2D([], [], **look | ({} if alone else {"color": _INK})) for look in looks]
    axes.legend(handles, ["train", "validation"], loc="upper right", frameon=False, labelcolor=_INK)


def _name_runs(figure: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    if len(names) == 1:
        figure.suptitle(names[0], x=0.01, ha="left", color=_INK, fontsize=12, parse_math=False)
        return
    handles = [Line2D([], [], **_line(number, "validation", 1, False)) for number in range(len(names))]
    columns = max(1, math.floor(120 / (max(map(len, names)) + 6)))
    legend = figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False, labelcolor=_INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
