"""Where the runs of a command line lie, and when something is first written there."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from lit_tbptt.cli.command_line import config_file, given_value
from lit_tbptt.files.run_folder import runs_of


def runs_of_command_line(args: Sequence[str]) -> Path:
    """Returns the folder of all runs of a command line's configuration file, or of none.

    It is in `runs_dir`, or else in the folder `runs` of `trainer.default_root_dir`, or of the working directory.
    """
    root, runs_dir = given_value(args, "trainer.default_root_dir"), given_value(args, "runs_dir")
    return runs_of(config_file(args), runs_dir or Path(root or "", "runs"))


class SaveSettings(SaveConfigCallback):
    """Writes the settings of a run when its training starts: a start that is refused leaves no file."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Does nothing yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")
