"""Calls callbacks after every window and every optimizer step, of which a Lightning batch has several."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities import rank_zero_warn

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Batch

# Lightning's callbacks that rely on automatic optimization, and what to use instead.
_REFUSED = {
    StochasticWeightAveraging: "it steps a schedule of its own once a batch; use EMAWeightAveraging, or "
    "WeightAveraging with torch.optim.swa_utils.SWALR as lr_scheduler",
    LearningRateFinder: "it raises the learning rate once a batch, and a batch holds several steps; compare short "
    "runs with trainer.max_steps",
    BatchSizeFinder: "the number of lanes decides what is learned and not only how much memory is used; set num_lanes",
}


def check_callbacks(trainer: Trainer) -> None:
    """Checks that no callback relies on automatic optimization, and that at most one averages weights.

    Raises:
        InputError: Such a callback, or a second averaging callback, is in use.
    """
    for callback in trainer.callbacks:
        for refused, reason in _REFUSED.items():
            if isinstance(callback, refused):
                raise InputError(f"trainer.callbacks={type(callback).__name__}: {reason}")
    averaging = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    if len(averaging) > 1:
        raise InputError(
            f"trainer.callbacks={', '.join(averaging)}: each keeps its average as the model's weights; use one of them"
        )


def match_precision(trainer: Trainer) -> None:
    """Lets averages have the precision of float64 weights: Lightning creates them before it converts the module."""
    if not isinstance(trainer.precision_plugin, DoublePrecision):
        return
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            callback._average_model.double()


def check_resumed_callbacks(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Checks that a run whose checkpoint holds an average continues it, and warns of a callback that cannot continue.

    Raises:
        InputError: It would go on from the average, in place of the trained weights.
    """
    if "current_model_state" in checkpoint and not any(isinstance(each, WeightAveraging) for each in trainer.callbacks):
        raise InputError(
            "trainer.callbacks: the run to be resumed averages its weights, and the checkpoint's are the average; give "
            "the same callback, with the config or the code that the run was started with, or start a new run from "
            "these weights"
        )
    if any(isinstance(callback, ModelPruning) for callback in trainer.callbacks):
        rank_zero_warn(
            "trainer.callbacks=ModelPruning: Lightning saves pruned weights without their masks, so in the resumed run "
            "they are trained until the next pruning"
        )


def end_averages(trainer: Trainer, pl_module: LightningModule, trained: bool) -> None:
    """Ends averages with the fit; the module has them then.

    An evaluation by the same trainer would exchange them for the weights of the checkpoint that it loads, or load the
    checkpoint's trained weights in place of their average.

    Args:
        trainer: The trainer.
        pl_module: The module.
        trained: Whether anything was trained. If not, Lightning leaves the trained weights of the checkpoint in it.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            if not trained and callback._average_model is not None:
                callback.on_train_end(trainer, pl_module)
            callback._average_model = None


def is_part_of_fit(trainer: Trainer, pl_module: Any) -> bool:
    """Returns whether the validation that has just ended is one of the run's, which follow a whole batch of a fit."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking and pl_module.position.batch_finished


@contextmanager
def trained_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Restores the trained weights temporarily during a validation of their average."""
    averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    for callback in averaging:
        callback.on_validation_epoch_end(trainer, pl_module)  # it does nothing else
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_start(trainer, pl_module)


def window_hooks(trainer: Trainer) -> list[Callable[..., None]]:
    """Returns the hooks to call as `hook(trainer, module, window)` after a window."""
    return [callback.on_window_end for callback in trainer.callbacks if hasattr(callback, "on_window_end")]


def between_hooks(trainer: Trainer, batch: Batch, batch_idx: int) -> list[Callable[[], None]]:
    """Returns the hooks to call before every window except the first of a batch, where Lightning calls them."""
    monitors = [callback for callback in trainer.callbacks if isinstance(callback, LearningRateMonitor)]
    return [partial(_monitor, callback, trainer, batch, batch_idx) for callback in monitors]


def _monitor(callback: Callback, trainer: Trainer, batch: Batch, batch_idx: int) -> None:
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step  # its x-axis
    callback.on_train_batch_start(trainer, trainer.lightning_module, batch, batch_idx)


def step_hooks(trainer: Trainer, batch: Batch, batch_idx: int) -> tuple[list[Any], list[Any]]:
    """Returns the hooks to call as `hook(trainer, module)` after an optimizer step in a batch.

    Returns:
        Those that average weights, which belong to the step whatever saves it; and those to call after `window_hooks`.
    """
    # WeightAveraging and ModelCheckpoint check the number of optimizer steps at the end of a batch. They are
    # called after each step too; at the end of the batch they then notice that they have already seen the last step.
    averaging: list[Any] = []
    others: list[Any] = []
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            averaging.append(partial(_end_batch, callback, batch, batch_idx))
        if isinstance(callback, ModelCheckpoint):
            others.append(partial(_end_batch, callback, batch, batch_idx))
        if hasattr(callback, "on_step_end"):
            others.append(callback.on_step_end)
    return averaging, others


def _end_batch(callback: Callback, batch: Batch, batch_idx: int, trainer: Trainer, pl_module: LightningModule) -> None:
    callback.on_train_batch_end(trainer, pl_module, None, batch, batch_idx)
