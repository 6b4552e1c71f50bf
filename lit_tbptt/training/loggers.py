"""Loggers that a resumed run continues without gaps or overlaps, and the folder of a run's files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_tbptt.files.atomic import replacing
from lit_tbptt.files.run_folder import RunFolder


class RunCSVLogger(Logger):
    """Writes `metrics.csv`, one row at a time.

    Lightning's own CSVLogger deletes the existing file when a run is resumed.

    Args:
        folder: The run's folder.
        resume_step: Rows from this step on are removed; the resumed run writes them again. None: all rows are removed.
    """

    def __init__(self, folder: RunFolder, resume_step: int | None = None) -> None:
        super().__init__()
        self.folder = folder.path
        self._file = folder.metrics
        self._rows: list[dict[str, Any]] = []
        self._columns = ["step", "tokens"]
        self._begun = False
        if resume_step is not None and self._file.exists():
            with open(self._file, newline="") as stream:
                lines = stream.read().splitlines(keepends=True)
            # The last line may be incomplete if the process was killed.
            rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
            self._rows = [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < resume_step]
            self._columns = list(rows[0]) if rows else self._columns

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's folder has its config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step
        new = sorted(row.keys() - set(self._columns))
        self._rows.append(row)
        self._columns += new
        if new or not self._begun:
            self._begun = True
            with replacing(self._file) as beside, open(beside, "w", newline="") as stream:
                writer = csv.DictWriter(stream, self._columns)
                writer.writeheader()
                writer.writerows(self._rows)
        else:
            with open(self._file, "a", newline="") as stream:
                csv.DictWriter(stream, self._columns).writerow(row)


class _FolderLogger(RunCSVLogger):
    """Only provides the folder of a run; writes nothing."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Does nothing."""


class TokensTensorBoardLogger(TensorBoardLogger):
    """Writes curves over tokens instead of optimizer steps."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        tokens = metrics.get("tokens")
        super().log_metrics(dict(metrics), step if tokens is None else int(tokens))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the other TensorBoard logger writes them."""


def run_folder(trainer: Trainer) -> RunFolder:
    """Returns the folder of a trainer's run, from its first logger; all processes must call it together."""
    logger = trainer.logger
    if logger is None or isinstance(logger, RunCSVLogger | TensorBoardLogger | CSVLogger):
        return RunFolder(trainer.log_dir or trainer.default_root_dir)
    # For other loggers, Lightning's log_dir is shared by all runs.
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    path = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return RunFolder(trainer.strategy.broadcast(path))


def run_loggers(folder: RunFolder, resume_step: int | None = None, resume_tokens: int | None = None) -> list[Logger]:
    """Returns the loggers of a run: metrics.csv, and TensorBoard curves over steps and over tokens.

    Args:
        folder: The run's folder.
        resume_step: The optimizer step at which the run is resumed; entries from this step on are removed.
        resume_tokens: The number of tokens trained on at that step.
    """
    runs = folder.path.parent
    root = {"save_dir": str(runs.parent), "name": runs.name, "version": folder.name}
    return [
        RunCSVLogger(folder, resume_step),
        TensorBoardLogger(**root, sub_dir=folder.by_step, purge_step=resume_step),
        TokensTensorBoardLogger(**root, sub_dir=folder.by_tokens, purge_step=resume_tokens),
    ]


def folder_alone(loggers: Sequence[Logger]) -> list[Logger]:
    """Returns a logger that writes nothing, but has the folder of `run_loggers`, for the checkpoints."""
    return [_FolderLogger(RunFolder(str(loggers[0].save_dir)))]
