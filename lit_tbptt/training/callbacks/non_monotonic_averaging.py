"""NonMonotonicAveraging: averages the weights once the validation loss has stopped falling (NT-ASGD)."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_tbptt.errors import InputError
from lit_tbptt.training.hooks import is_part_of_fit


class NonMonotonicAveraging(WeightAveraging):
    """Averages the weights of all steps from the one where the validation loss has stopped falling.

    Merity, Keskar & Socher (2018), "Regularizing and optimizing LSTM language models" (arXiv:1708.02182), section 3 and
    algorithm 1: with plain SGD and a constant learning rate it is their NT-ASGD. Averaging starts at the first
    validation whose loss is above the lowest of all but the latest `patience` validations before it. The average of
    step K is then the mean of the weights after the steps T to K, where T is the step of that validation.

    The average is used as Lightning's other averages are: validation, `state_dict` of checkpoints and the module after
    the fit have it, and a resumed run continues the trained weights. Before averaging starts, all have the trained
    weights.

    Torch's `ASGD` with `lambd=0` makes the same steps, but each with the learning rate of the step before, and its
    average starts two steps after its `t0`. This callback works with every optimizer and learning rate.

    Args:
        patience: How many of the latest validations are left out of the comparison; the authors' n.

    Attributes:
        losses: The losses of the validations up to the one where averaging starts.
        first_step: The step where averaging starts, T. None: it has not started.
    """

    def __init__(self, patience: int = 5) -> None:
        super().__init__()
        self.patience = patience
        self.losses: list[float] = []
        self.first_step: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the setting.

        Raises:
            InputError: `patience` is below 0.
        """
        if self.patience < 0:
            raise InputError(f"NonMonotonicAveraging: patience={self.patience}: must be 0 or more")
        if stage == "fit":
            self.losses, self.first_step = [], None
        super().setup(trainer, pl_module, stage)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self.first_step is not None and step_idx is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:
            rank_zero_warn("NonMonotonicAveraging: without validations, weights are never averaged")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts averaging, if the loss has stopped falling.

        Raises:
            InputError: The validation has no loss.
        """
        if self.first_step is not None or not is_part_of_fit(trainer, pl_module):
            return
        name = f"val/{pl_module.loss_name}"
        value = trainer.callback_metrics.get(name)
        # Process 0 decides, since a metric defined by the user may differ between processes.
        loss = trainer.strategy.broadcast(None if value is None else float(value))
        if loss is None:
            raise InputError(
                f"NonMonotonicAveraging compares {name}, which no validation has logged; there is "
                f"{', '.join(sorted(trainer.callback_metrics))}: return it from describe_loss"
            )
        if not math.isfinite(loss):
            return
        if self.should_start(loss):
            self._start(trainer, pl_module)
            rank_zero_info(f"step {trainer.global_step}: {name} has stopped falling; weights are averaged from here on")
        self.losses.append(loss)

    def should_start(self, loss: float) -> bool:
        """Returns whether averaging starts at a validation with this loss; those before it are in `losses`."""
        earlier = self.losses[: max(0, len(self.losses) - self.patience)]
        return bool(earlier) and loss > min(earlier)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self.first_step = self._latest_update_step = trainer.global_step
        self._average_model.n_averaged.zero_()  # the first update copies the weights
        self._average_model.update_parameters(pl_module)

    # Before averaging starts, there is no average to validate, save or keep.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first_step is not None:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first_step is not None:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first_step is not None:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.first_step is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "averaging_state" in checkpoint and trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        # After the fit, a checkpoint has no average to continue.
        first_step = None if self._average_model is None else self.first_step
        return super().state_dict() | {"losses": list(self.losses), "first_step": first_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.losses, self.first_step = list(state_dict["losses"]), state_dict["first_step"]
