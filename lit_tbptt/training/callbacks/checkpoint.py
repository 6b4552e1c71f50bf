"""RunCheckpoint: when and where a run is saved."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn

from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import is_plain, read_checkpoint, write_checkpoint
from lit_tbptt.files.run_folder import RunFolder
from lit_tbptt.files.schema import new_run_state
from lit_tbptt.training.hooks import is_part_of_fit
from lit_tbptt.training.loggers import run_folder


class SafeCheckpointIO(TorchCheckpointIO):
    """Makes Lightning save and load with `write_checkpoint` and `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return dict(read_checkpoint(path, map_location))


class RunCheckpoint(Checkpoint):
    """Saves a run at step boundaries, also inside a batch, into `checkpoints/` of the run's folder.

    `last.ckpt` is written every N steps, every N minutes (at the next step), after every validation and at every stop;
    the checkpoint before it is kept as `previous.ckpt`. `best.ckpt`, `best-2.ckpt`, ... are the best by validation. So
    a run keeps `2 + save_top_k` files. With Adam, each is about three times the size of the weights, plus the carried
    state. Process 0 writes them, for all.

    If a file cannot be written, the run prints a warning and continues; the previous files stay intact.

    Args:
        every_n_steps: Optimizer steps between two checkpoints. Left out: not by steps.
        every_n_minutes: Minutes between two checkpoints. null: not by time.
        monitor: The validation metric that determines the best checkpoint. Left out: the module's mean loss, such as
            val/loss, or val/nats_per_token for a language model.
        mode: Whether the lowest (`min`) or the highest (`max`) value is best.
        save_top_k: The number of best checkpoints to keep.

    Attributes:
        validated_step: The optimizer step of the run's last validation. None: there was none.

    Raises:
        InputError: A number is out of range, or `mode` is neither.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = 10.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"checkpoint.every_n_steps={every_n_steps}: must be 1 or more, or left out")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise InputError(f"checkpoint.every_n_minutes={every_n_minutes}: must be above 0, or left out")
        if mode not in ("min", "max"):
            raise InputError(f"checkpoint.mode={mode!r}: must be min or max")
        if save_top_k < 0:
            raise InputError(f"checkpoint.save_top_k={save_top_k}: must be 0 or more")
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.monitor = self._given_monitor = monitor
        self.sign = 1 if mode == "min" else -1
        self.save_top_k = save_top_k
        self.scores: list[float] = []  # of best.ckpt, best-2.ckpt, ...
        self.settings: dict[str, Any] | None = None
        self.validated_step: int | None = None
        self.folder = RunFolder("")
        self._own: Path | None = None  # the folder of an earlier fit
        self._saved_at = time.monotonic()

    @property
    def last_model_path(self) -> str:
        return str(self.folder.last) if self.folder.last.exists() else ""

    @property
    def best_model_path(self) -> str:
        return str(self.folder.best()) if self.scores and self.folder.best().exists() else ""

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        """Does nothing: strategies that fork assign the path found by a process here."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()
        if stage != "fit":
            return
        # Moved to the end, so that checkpoints include what the other callbacks did.
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self] + [self]
        for owner in filter(None, (pl_module, getattr(trainer, "datamodule", None))):
            objects = [name for name, value in owner.hparams.items() if not is_plain(value)]
            if objects:
                raise InputError(
                    f"{type(owner).__name__}.save_hyperparameters() keeps {', '.join(objects)}, and a checkpoint holds "
                    f"tensors and plain values only: save_hyperparameters(ignore={objects})"
                )
        self.folder = run_folder(trainer)
        if self.folder.path != self._own:
            self.scores, self.validated_step = [], None
        self.monitor = self._given_monitor or f"val/{pl_module.loss_name}"
        self._saved_at = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        others = trainer.ckpt_path is None and self.folder.path != self._own
        if others and self.folder.has_checkpoints and not trainer.fast_dev_run:
            raise InputError(
                f"{self.folder.checkpoints} has the checkpoints of another run, which this one would replace: continue "
                "that run with ckpt_path, or give the trainer a logger with a new version, or another default_root_dir"
            )
        self._own = self.folder.path

    def on_step_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if it is due by steps or minutes."""
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if "save" in pl_module.agreement.agreed or due:
            self.save_last(trainer)
        elif self.every_n_minutes and (time.monotonic() - self._saved_at) / 60 >= self.every_n_minutes:
            pl_module.agreement.request("save")  # clocks differ, so all processes save at the next boundary

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        score = trainer.callback_metrics.get(self.monitor)
        # Process 0 decides, since a metric defined by the user may differ between processes.
        score, self.scores = trainer.strategy.broadcast((None if score is None else float(score), self.scores))
        if score is None and self.save_top_k:
            known = ", ".join(sorted(trainer.callback_metrics))
            rank_zero_warn(
                f"checkpoint.monitor={self.monitor!r} is not known, so no best.ckpt is kept; there is {known}"
            )
        elif score is not None and math.isfinite(score):
            self._rank(trainer, self.sign * score)
        # Where max_steps interrupted a batch, last.ckpt was written before: the run that continues it does not validate
        # here, and the score is not in its state.
        if is_part_of_fit(trainer, pl_module):
            self.save_last(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # If max_steps interrupts an epoch, Lightning ends it anyway; a resumed run continues it.
        if trainer.global_step == trainer.max_steps and not pl_module.position.at_epoch_end:
            self.save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not in on_train_end, where callbacks that average weights replace the weights by the average.
        if trainer.global_step == trainer.max_steps:
            ends = pl_module.position.at_epoch_start  # otherwise max_steps has interrupted it, see above
        else:
            ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if ends:
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`, and keeps the previous one as `previous.ckpt`."""

        def place() -> None:
            if self.folder.last.exists():
                self.folder.last.replace(self.folder.previous)
            path.replace(self.folder.last)

        path = self.folder.next
        self._save(trainer, path, place)

    def _rank(self, trainer: Trainer, score: float) -> None:
        place = sum(known <= score for known in self.scores)
        if place >= self.save_top_k:
            return
        before = list(self.scores)
        self.scores = [*before[:place], score, *before[place:]][: self.save_top_k]

        def insert() -> None:
            for index in range(len(self.scores) - 1, place, -1):
                self.folder.best(index - 1).replace(self.folder.best(index))
            path.replace(self.folder.best(place))

        # First write the new file under a temporary name; then move the worse ones down.
        path = self.folder.new_best
        if not self._save(trainer, path, insert):
            self.scores = before

    def _save(self, trainer: Trainer, path: Path, place: Callable[[], None]) -> bool:
        """Writes a file and moves it into place, on rank 0; returns on all ranks whether this worked."""
        if trainer.fast_dev_run:
            return False
        self._saved_at = time.monotonic()
        failure = ""
        try:
            # Not trainer.save_checkpoint, where the other processes would wait for one that cannot write.
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(False), path)
            if trainer.is_global_zero:
                place()
        except OSError as error:
            failure = error.strerror or str(error) or type(error).__name__
        failure = trainer.strategy.broadcast(failure)
        if failure:
            good = self.last_model_path or "none"
            rank_zero_warn(
                f"{path.name} could not be written ({failure}); the run goes on; last good checkpoint: {good}"
            )
        return not failure

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.settings is not None:
            new_run_state(checkpoint)["settings"] = self.settings

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores, "validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A run resumed into a new folder has no best checkpoint there yet.
        present = [score for index, score in enumerate(state_dict["scores"]) if self.folder.best(index).exists()]
        self.scores, self.validated_step = present, state_dict.get("validated_step")
