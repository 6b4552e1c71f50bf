"""Evaluation that carries a state of its own through a split, and leaves the training state alone."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_tbptt.tbptt.state import State, detach, reset_lanes
from lit_tbptt.tbptt.window import Batch, Window
from lit_tbptt.training.ddp import check_lanes


class StatefulEvaluation(LightningModule):
    """Validation and test over windows that follow each other. Every target is scored once.

    Attributes:
        evaluation_steps: Lanes start afresh in every window, and there every so many steps. None: only where the data
            say so.
    """

    evaluation_steps: int | None = None
    _evaluation_state: State | None = None

    def initial_state(self, num_lanes: int) -> State:
        """Returns the state of lanes that start afresh: any pytree of tensors, lane axis first in every leaf."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_state(num_lanes)")

    def window_loss(self, window: Window, state: State) -> tuple[Tensor, Tensor | int, State]:
        """Runs the model over one window, or over a piece of one, which may be a single step.

        It is called again for context and with `checkpoint_every`, so it must count nothing on the side.

        Returns:
            The loss summed over the scored targets, their number, and the state after the window.
        """
        raise NotImplementedError(f"{type(self).__name__} must define window_loss(window, state)")

    def describe_loss(self, mean_loss: float, source: Any) -> dict[str, float]:
        """Names the values that are logged for a mean loss per target over `source`, a loader."""
        return {"loss": mean_loss}

    def evaluation_window(self, window: Window, state: State) -> State:
        """Scores one window in evaluation and returns the state after it; a subclass with metrics overrides this."""
        loss, num_targets, state = self.window_loss(window, state)
        self._evaluation_sums += torch.stack([loss.double(), torch.as_tensor(num_targets, device=loss.device).double()])
        return state

    def evaluation_values(self) -> dict[str, float]:
        """Returns what was found since `on_evaluation_start`, means over targets, all ranks together."""
        loss, num_targets = self.all_gather(self._evaluation_sums).view(-1, 2).sum(0).tolist()
        return self.describe_loss(loss / max(1.0, num_targets), None)

    def on_evaluation_start(self) -> None:
        """Forgets the state and the sums of the evaluation before."""
        self._evaluation_state = None
        self._evaluation_sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_evaluation_end(self, values: Mapping[str, float]) -> None:
        """Takes what an evaluation found, by the names that a callback monitors."""

    def _evaluation_step(self, batch: Batch) -> None:
        for whole in batch.windows:
            if whole.num_lanes == 0:
                return  # there are fewer lanes than processes
            for window in whole.pieces(self.evaluation_steps or whole.num_steps):
                fresh = self.initial_state(window.num_lanes)
                state = self._evaluation_state
                if state is None or self.evaluation_steps:
                    state = fresh
                elif window.reset is not None:
                    state = reset_lanes(window.reset, fresh, state)
                self._evaluation_state = detach(self.evaluation_window(window, state))

    def _evaluation_end(self, stage: str) -> None:
        self._evaluation_state = None
        values = {f"{stage}/{name}": float(value) for name, value in self.evaluation_values().items()}
        # For callbacks that monitor a metric; the loggers get it at our own x-axis. It is of all processes already.
        warnings.filterwarnings("ignore", ".*sync_dist=True.* when logging on epoch level in distributed setting")
        self.log_dict(values, logger=False)
        self.on_evaluation_end(values)

    def on_validation_epoch_start(self) -> None:
        check_lanes(self.trainer.val_dataloaders, self.trainer)
        self.on_evaluation_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def on_test_epoch_start(self) -> None:
        check_lanes(self.trainer.test_dataloaders, self.trainer)
        self.on_evaluation_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")
