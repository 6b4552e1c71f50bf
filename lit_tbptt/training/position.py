"""The position of a run, from which Lightning's own counters are rewritten.

Lightning counts batches. If a run is stopped inside a batch, by `max_steps`, or between a batch and its validation, it
would resume from Lightning's counters at a wrong place, or in a wrong epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map


@dataclass
class Position:
    """A position between two windows.

    Attributes:
        step: Optimizer steps made.
        window: Windows trained on in the whole run.
        epoch: Epochs finished.
        batch: The current batch of this epoch, from 0.
        batch_window: Windows of this batch that are done.
        batch_windows: Windows of this batch; 0 before the first batch.
        data: The position of the batch in the data. None: the start of an epoch.
        batches_before: Batches of the whole run before this one.
        batch_finished: Whether everything after the batch's last window, such as a validation, is done too.
        last_batch: Whether this is the last batch of the epoch.
    """

    step: int = 0
    window: int = 0
    epoch: int = 0
    batch: int = 0
    batch_window: int = 0
    batch_windows: int = 0
    data: Mapping[str, Any] | None = None
    batches_before: int = 0
    batch_finished: bool = False
    last_batch: bool = False

    @property
    def at_batch_end(self) -> bool:
        """Whether every window of the batch is done."""
        return self.batch_window == self.batch_windows

    @property
    def at_epoch_start(self) -> bool:
        """Whether no batch of the epoch has begun."""
        return self.batch_windows == 0

    @property
    def at_epoch_end(self) -> bool:
        """Whether every window of the epoch is done."""
        return self.last_batch and self.at_batch_end

    @property
    def awaits_end(self) -> bool:
        """Whether something is still due after the batch's last window: a validation, or the end of the epoch."""
        return not self.at_epoch_start and self.at_batch_end and (self.last_batch or not self.batch_finished)

    def next_epoch(self) -> "Position":
        """Returns the start of the next epoch."""
        return Position(self.step, self.window, self.epoch + 1, batches_before=self.batches_before + 1)

    def united(self, ranks: Sequence[Mapping[str, Any] | None]) -> "Position":
        """Merges the positions of all ranks, and converts arrays to tensors, for a checkpoint.

        Args:
            ranks: `data` of every rank. What only one rank knows has a key of its own.
        """
        return replace(self, data=tree_map(_as_tensor, _united(ranks)))

    def loader_state(self) -> dict[str, Any]:
        """Returns the state for a loader's `load_state_dict`: the batch to start at, how many to skip, the epoch."""
        if self.last_batch and self.batch_finished:
            # Lightning creates an iterator for the rest of the epoch, but does not request a batch from it.
            return {"position": None, "skip": 0, "epoch": self.epoch + 1}
        return {"position": self.data, "skip": int(self.batch_finished), "epoch": self.epoch}

    def rewrite(self, checkpoint: dict[str, Any], stopping: bool, loader_state: Mapping[str, Any] | None) -> None:
        """Rewrites the counters in Lightning's part of a checkpoint, so that a run resumes from here.

        Args:
            checkpoint: The checkpoint, changed in place.
            stopping: Whether a callback has stopped the run but the epoch has not ended yet.
            loader_state: The loader's own `state_dict`, to which the position is added. None: the loader cannot be
                resumed.
        """
        checkpoint["epoch"], checkpoint["global_step"] = self.epoch, self.step
        loop = checkpoint["loops"]["fit_loop"]
        inside = self.data is not None
        done = self.batch + int(self.batch_finished)
        started = self.epoch + int(inside)
        # Lightning passes a loader its state only if an epoch has begun or is ready to begin.
        ready = started if loader_state is None else self.epoch + 1
        epochs = {"ready": ready, "started": started, "processed": self.epoch, "completed": self.epoch}
        counted = ("ready", "started", "processed", "completed")
        # Lightning schedules validations that are not tied to epochs by the batches of the whole run.
        total = dict.fromkeys(counted, self.batches_before + int(self.batch_finished))
        steps = {"ready": self.step, "completed": self.step}
        loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
        progress = loop["epoch_loop.batch_progress"]
        progress |= {"total": total, "current": dict.fromkeys(counted, done)}
        # If this is true, Lightning ends the epoch before it fetches another batch.
        progress["is_last_batch"] = (self.last_batch or stopping) and self.batch_finished
        loop["epoch_loop.manual_optimization.optim_step_progress"] = {"total": steps, "current": dict(steps)}
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = self.step
        # An interrupted evaluation is not resumed; it starts again.
        for key, value in loop.items():
            if key.startswith("epoch_loop.val_loop") and key.endswith("batch_progress"):
                for part in ("total", "current"):
                    value[part] = dict.fromkeys(value[part], 0)
        if loader_state is not None:
            loop["state_dict"]["combined_loader"] = [{**loader_state, **self.loader_state()}]


def _united(parts: Sequence[Any]) -> Any:
    if not all(isinstance(part, Mapping) for part in parts):
        return parts[0]
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: _united([part[key] for part in parts if key in part]) for key in keys}


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
