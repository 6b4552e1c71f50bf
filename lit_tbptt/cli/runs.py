"""The run folders of a command line, and their cleanup after a refused start."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lit_tbptt.cli.command_line import config_file, given_value
from lit_tbptt.files.run_folder import RunFolder, runs_of


def runs_of_command_line(args: Sequence[str]) -> Path:
    """Returns the folder of all runs of a command line's config file, or of runs without one.

    It is in `runs_dir`, or else in the folder `runs` of `trainer.default_root_dir`, or of the working directory.
    """
    return runs_of(config_file(args), runs_dir_of_command_line(args))


def runs_dir_of_command_line(args: Sequence[str]) -> Path:
    """Returns the folder of the runs of all configs."""
    root, runs_dir = given_value(args, "trainer.default_root_dir"), given_value(args, "runs_dir")
    return Path(runs_dir or Path(root or "", "runs"))


class Start(Callback):
    """Records the files in a run's folder before a start, to remove new ones if it is refused.

    Args:
        folder: The run's folder.
        made: The folders above it that were made with it.
    """

    def __init__(self, folder: RunFolder, made: Iterable[Path] = ()) -> None:
        self.accepted = False
        self._made = sorted(made, reverse=True)
        self._folder = folder.path
        self._before = {self._folder, *self._folder.parents, *self._folder.rglob("*")}
        if not any(self._folder.glob("*")):  # it was created for this start
            self._before.remove(self._folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.accepted = True

    def undo(self) -> None:
        """Removes new files and folders, such as the loggers' event files, unless training has begun."""
        if self.accepted:
            return
        for path in sorted((self._folder, *self._folder.rglob("*")), reverse=True):
            if path in self._before:
                continue
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):  # another run may be there by now
                folder.rmdir()


class SaveSettings(SaveConfigCallback):
    """Writes the settings of a run when its training starts."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")
