"""Checkpoints of a run: the last one and the best by validation."""

import math
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_tbptt.checkpoint import read_checkpoint, write_checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """Sends everything that Lightning saves or loads through the one writer and the one reader."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path, map_location)


class RunCheckpoint(Checkpoint):
    """Writes `checkpoints/last.ckpt` and `checkpoints/best.ckpt` into the run's folder.

    Both are written after every validation, `last` also at the end of the fit.

    Args:
        monitor: The validation metric that tells which checkpoint is best: the lowest.
    """

    def __init__(self, monitor: str = "val/nats_per_token") -> None:
        self.monitor = monitor
        self.best_score = math.inf
        self.best_model_path = ""
        self.last_model_path = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = SafeCheckpointIO()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and float(score) < self.best_score:
            self.best_score = float(score)
            self.best_model_path = self._save(trainer, "best")
        self.last_model_path = self._save(trainer, "last")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:
            self.last_model_path = self._save(trainer, "last")

    def _save(self, trainer: Trainer, name: str) -> str:
        path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        return str(path)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_model_path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]
        self.best_model_path = state_dict["best_model_path"]
