"""Reads the logged metrics and the settings of a run from its csv and YAML files, without torch."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import local

# The same names as in RunFolder, which imports torch to read checkpoints.
METRICS, CONFIG, CONTINUED = "metrics.csv", "config.yaml", "config_from_step_"
# Training metrics other than the loss.
_NO_LOSS = {"train/lr", "train/tokens_per_second", "train/gradient_norm", "train/perplexity", "train/bits_per_byte"}
# Settings that differ between any two runs and do not affect the training.
_NO_SETTINGS = {"config", "run_name", "ckpt_path"}
_RUNS = Path("runs")
_MOST_NAMED = 8


class Series(NamedTuple):
    """The finite values of one metric, in the order in which they were logged."""

    tokens: list[float]
    values: list[float]


class LoggedRun(NamedTuple):
    """The metrics and settings of a run.

    Attributes:
        path: The run's folder, or a file that is not named metrics.csv.
        metrics: The values by name, such as `train/lr`.
        settings: Values by their names on the command line, as text. Empty: the run has no config.yaml.
        num_tokens: Number of tokens the run was trained on.
    """

    path: Path
    metrics: dict[str, Series]
    settings: dict[str, str]
    num_tokens: int

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def loss(self) -> str:
        """The name of the mean loss, without `train/` and `val/`."""
        names = [name for name in self.metrics if name.startswith("train/") and name not in _NO_LOSS]
        likely = [name for known in ("nats_per_token", "loss") for name in names if known in name]
        return next(iter(likely + names), "loss").removeprefix("train/")

    @property
    def monitor(self) -> tuple[str, str]:
        """The validation metric that determines the best checkpoint, and `min` or `max`."""
        asked = (self.settings.get(f"checkpoint.{key}", "null") for key in ("monitor", "mode"))
        name, mode = (text.partition(",")[0] for text in asked)  # the first value, if a resumed run has changed it
        return (f"val/{self.loss}" if name == "null" else name), ("max" if mode == "max" else "min")


def find_runs(asked: Sequence[str]) -> list[LoggedRun]:
    """Finds and reads runs; a run that is named twice is read once.

    Args:
        asked: For each run its folder, its metrics.csv, or its name under runs/*/.

    Raises:
        InputError: There is no such run, there are several, or nothing was logged yet.
    """
    files = {path.resolve(): (path, name) for name in asked for path in [_find(name)]}
    return [_named(file, name) for file, name in files.values()]


def read_run(file: Path) -> LoggedRun:
    """Reads a metrics.csv, and the settings in the same folder.

    Raises:
        InputError: The file is not a metrics.csv, or has no metrics.
    """
    metrics: dict[str, Series] = {}
    num_tokens = 0.0
    for row in _rows(file):
        tokens = _number(row["tokens"])
        if not math.isfinite(tokens):
            continue
        num_tokens = max(num_tokens, tokens)
        for name, text in row.items():
            if "/" in name and math.isfinite(value := _number(text)):
                series = metrics.setdefault(name, Series([], []))
                series.tokens.append(tokens)
                series.values.append(value)
    if not metrics:
        raise InputError(f"nothing is logged in {file} yet")
    path = file.parent if file.name == METRICS else file
    return LoggedRun(path, metrics, _settings(file.parent), int(num_tokens))


def labels(runs: Sequence[LoggedRun]) -> list[str]:
    """Names runs by the ends of their paths: <config name>/<run name>, or more if that is ambiguous."""
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(2, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _find(asked: str) -> Path:
    path = local(asked)
    if path.is_file():
        return path
    if (path / METRICS).is_file():
        return path / METRICS
    places = [_RUNS / path, *(folder / path for folder in sorted(_RUNS.glob("*")))]
    found = list(dict.fromkeys(place for place in places if (place / METRICS).is_file()))
    if len(found) > 1:
        raise InputError(f"RUN={asked!r}: there are several: {_listed(found)}; give the path of one")
    if found:
        return found[0] / METRICS
    if path.is_dir():
        below = [file.parent for file in sorted(path.glob(f"**/{METRICS}"))]
        rest = f"the runs below it are {_listed(below)}; name one or more of them" if below else "nothing is logged yet"
        raise InputError(f"RUN={asked!r}: there is no {METRICS} in this folder; {rest}")
    known = [file.parent for file in sorted(_RUNS.glob(f"*/*/{METRICS}"))]
    there = f"there are {_listed(known)}" if known else f"there are none in {_RUNS.resolve()}"
    raise InputError(
        f"RUN={asked!r}: no such run folder, {METRICS}, or name of a run in {_RUNS}/<config name>/; {there}"
    )


def _listed(paths: Sequence[Path]) -> str:
    more = len(paths) - _MOST_NAMED
    return ", ".join(map(str, paths[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def _named(file: Path, asked: str) -> LoggedRun:
    try:
        return read_run(file)
    except InputError as error:
        raise InputError(f"RUN={asked!r}: {error}") from error


def _rows(file: Path) -> Iterator[dict[str, str]]:
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            table = csv.DictReader(line for line in stream if line.endswith("\n"))  # the last line may be incomplete
            if "tokens" not in (table.fieldnames or ()):
                raise InputError(f"{file} is not the {METRICS} of a run: it has no column tokens")
            for row in table:
                yield {name: text for name, text in row.items() if isinstance(name, str) and isinstance(text, str)}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is not the {METRICS} of a run: {error}") from error


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _settings(folder: Path) -> dict[str, str]:
    """Reads the settings of the start of a run and of each resume."""
    continued = {_step(file): file for file in folder.glob(f"{CONTINUED}*.yaml")}
    steps = {int(step): file for step, file in continued.items() if step.isdecimal()}
    settings: dict[str, str] = {}
    now: dict[str, str] = {}
    for step, file in [(0, folder / CONFIG), *sorted(steps.items())]:
        if not file.is_file():
            continue
        try:
            read = dict(_flat(yaml.safe_load(file.read_text()) or {}))
        except yaml.YAMLError as error:
            raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        for name, value in read.items():
            if name not in settings:
                settings[name] = value
            elif value != now.get(name):
                settings[name] += f", {value} from step {step}"
        now = read
    return settings


def _step(file: Path) -> str:
    return file.stem.removeprefix(CONTINUED)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict) or not value:
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)
        return
    for key, inner in value.items():
        if not name and key in _NO_SETTINGS:
            continue
        if key == "class_path":
            yield name, str(inner).rpartition(".")[2]
        else:
            yield from _flat(inner, name if key == "init_args" else f"{name}.{key}".removeprefix("."))
