"""The folder of a run: its path and its files.

runs/<config name>/<run name>/     the run name is version_0, version_1, ... unless one is given
config.yaml                    the settings; config_from_step_<n>.yaml for each resume
metrics.csv                    the logged metrics
curves.png                     the metrics as a picture, if matplotlib is installed
by_step/  by_tokens/           the metrics for TensorBoard
gradient_horizon/              curves of the GradientHorizon callback
checkpoints/                   last.ckpt, previous.ckpt, best.ckpt, best-2.ckpt, ...
"""

import errno
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import local
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.files.schema import Checkpoint, run_state


def runs_of(config: str | None, runs_dir: str | Path = "runs") -> Path:
    """Returns the folder of all runs of a config file, or of runs without one."""
    return Path(runs_dir) / (Path(config).stem if config else "default")


def searched_runs(config: str | None, runs_dir: str | Path = "runs") -> list[Path]:
    """Returns the folders of runs that `last` and `best` are looked for in: of all configs, if none is given."""
    if config is None and (folders := sorted(path for path in Path(runs_dir).glob("*") if path.is_dir())):
        return folders
    return [runs_of(config, runs_dir)]


class RunFolder:
    """The folder of one run. Except by `reserve`, nothing is created before it is written to.

    Args:
        path: The folder.

    Raises:
        InputError: It is a URL.
    """

    by_step, by_tokens = "by_step", "by_tokens"  # TensorBoard folders

    def __init__(self, path: str | Path) -> None:
        self.path = local(path)

    @classmethod
    def reserve(cls, runs: Path, name: str | None = None) -> "RunFolder":
        """Creates the folder of a new run, exclusively for this process if no name is given.

        Args:
            runs: The folder of all runs of a config.
            name: The name of the run. None: the first free version_<n>.

        Raises:
            InputError: There is such a run already, the name is a path, or the folder cannot be made.
        """
        if name is not None:
            if name in ("", "..") or Path(name).name != name:
                raise InputError(f"run_name={name!r}: must be the name of a folder, not a path; see runs_dir")
            folder = cls(runs / name)
            if folder.has_checkpoints:
                raise InputError(
                    f"run_name={name!r}: {folder.path} has checkpoints; continue it with --ckpt_path last, or choose "
                    "another name"
                )
            with _runs_dir_named(runs):
                folder.path.mkdir(parents=True, exist_ok=True)
            return folder
        number = next_version(runs)
        while True:
            folder = cls(runs / f"version_{number}")
            try:
                with _runs_dir_named(runs):
                    folder.path.mkdir(parents=True)
                return folder
            except FileExistsError:  # another process created it first
                number += 1

    @classmethod
    def of_checkpoint(cls, path: Path) -> "RunFolder | None":
        """Returns the run folder that contains a checkpoint. None: it is not in a run folder."""
        if path.parent.name != "checkpoints":  # it may be a link, or a relative path
            path = path.resolve()
        folder = cls(path.parent.parent)
        return folder if path.parent == folder.checkpoints else None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        return self.checkpoints / "previous.ckpt"

    def best(self, place: int = 0) -> Path:
        """Returns the path of the best checkpoint (0), the second best (1), and so on."""
        return self.checkpoints / ("best.ckpt" if place == 0 else f"best-{place + 1}.ckpt")

    def config(self, from_step: int | None = None) -> Path:
        """Returns the path of the settings of the first start, or of the resume from a step."""
        return self.path / ("config.yaml" if from_step is None else f"config_from_step_{from_step}.yaml")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def next(self) -> Path:
        """Returns the temporary path of a new last.ckpt."""
        return self.checkpoints / "next.ckpt"

    @property
    def new_best(self) -> Path:
        """Returns the temporary path of a new best checkpoint."""
        return self.checkpoints / "new-best.ckpt"

    @property
    def gradient_horizon(self) -> Path:
        return self.path / "gradient_horizon"

    @property
    def has_checkpoints(self) -> bool:
        return any(self.checkpoints.glob("*.ckpt"))

    def newest_checkpoint(self) -> tuple[Path, Checkpoint]:
        """Finds the newest readable checkpoint, and warns about unreadable ones.

        Returns:
            Its path and contents.

        Raises:
            InputError: There is none.
        """
        readable: list[tuple[Path, Checkpoint]] = []
        broken: list[str] = []
        for path in sorted(self.checkpoints.glob("*.ckpt")):
            try:
                readable.append((path, read_checkpoint(path)))
            except InputError as error:
                broken.append(str(error))
        if not readable:
            raise InputError("; ".join([f"no checkpoint that can be read in {self.checkpoints}", *broken]))
        # For the same step, take the one written last: it may include a validation that the other lacks.
        path, checkpoint = max(readable, key=lambda pair: (pair[1]["global_step"], _modified(pair[0])))
        for message in broken:
            warnings.warn(f"{message}; {path} is taken instead", stacklevel=2)
        return path, checkpoint

    def _written(self) -> float:
        return max(map(_modified, self.checkpoints.glob("*.ckpt")), default=0)


@contextmanager
def _runs_dir_named(runs: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"runs_dir={str(runs.parent)!r}: the folder of a run cannot be made there ({error.filename}: "
            f"{error.strerror}); give a folder that can be written to"
        ) from error


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # a running fit has just renamed it
        return 0


def next_version(runs: Path) -> int:
    """Returns the number after the highest existing version_<n>."""
    numbers = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def find_checkpoint(
    asked: str, runs: Sequence[Path], run_name: str | None, argument: str = "ckpt_path"
) -> tuple[Path, Checkpoint]:
    """Finds and reads a checkpoint of this package.

    Args:
        asked: `last`, `best`, the path of a file, or the path of a run folder, for its newest checkpoint.
        runs: Folders of runs, see `searched_runs`.
        run_name: The run that `last` and `best` refer to. None: the one that was written to most recently.
        argument: The name of the user's argument, for messages.

    Raises:
        InputError: There is no such checkpoint, it cannot be read, or it was not written by this package.
    """
    path, checkpoint = _find(asked, runs, run_name, argument)
    try:
        run_state(checkpoint)
    except InputError as error:
        raise InputError(f"{argument}={asked!r}: {error}") from error
    return path, checkpoint


def _find(asked: str, runs: Sequence[Path], run_name: str | None, argument: str) -> tuple[Path, Checkpoint]:
    if asked not in ("last", "best"):
        path = local(asked)
        if any(path.glob("*.safetensors")) or path.suffix == ".safetensors":
            raise InputError(
                f"{argument}={asked!r}: a model that was exported, without the state of its training; generate and "
                "score take its folder, and everything else a checkpoint of the run"
            )
        if path.is_dir():
            if there := [run for run in map(RunFolder, sorted(path.iterdir())) if run.has_checkpoints]:
                names = ", ".join(run.name for run in there)
                raise InputError(f"{argument}={asked!r}: a folder of runs, {names}; give one of them, {there[-1].path}")
            return RunFolder(path.parent if path.name == "checkpoints" else path).newest_checkpoint()
        if not path.exists():
            raise InputError(f"{argument}={asked!r}: no such file{_meant(path)}")
        return path, read_checkpoint(path)
    folders = [path for folder in runs for path in ([folder / run_name] if run_name else folder.glob("*"))]
    candidates = [run for run in map(RunFolder, folders) if run.has_checkpoints]
    run = max(candidates, key=RunFolder._written, default=None)
    if run is None:
        where = RunFolder((runs[0] if len(runs) == 1 else runs[0].parent / "*") / (run_name or "*")).checkpoints
        raise InputError(
            f"{argument}={asked!r}: no checkpoint in {where}; give the same --config (or --run_name) as the run you "
            "mean, or the path of a checkpoint"
        )
    if asked == "last":
        return run.newest_checkpoint()
    if not run.best().exists():
        raise InputError(
            f"{argument}='best': {run.path} was not validated during training and has no best.ckpt; use last"
        )
    return run.best(), read_checkpoint(run.best())


def _meant(path: Path) -> str:
    """Returns a hint for a missing checkpoint: what the user may have meant."""
    if path.name.lower() in ("last", "best"):
        return f"; did you mean {path.name.lower()}?"
    there = [each.name for each in path.parent.glob("*.ckpt")]
    close = get_close_matches(path.name, there, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
