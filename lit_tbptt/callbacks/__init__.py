"""Callbacks for runs of `LitTBPTT`."""

from lit_tbptt.callbacks.checkpoint import RunCheckpoint, SafeCheckpointIO
from lit_tbptt.callbacks.progress import StepProgressBar

__all__ = ["RunCheckpoint", "SafeCheckpointIO", "StepProgressBar"]
