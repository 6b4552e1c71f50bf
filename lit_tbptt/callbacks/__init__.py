"""Callbacks for runs of `LitTBPTT`."""

from lit_tbptt.callbacks.checkpoint import RunCheckpoint, SafeCheckpointIO
from lit_tbptt.callbacks.gradient_horizon import GradientHorizon
from lit_tbptt.callbacks.progress import StepProgressBar
from lit_tbptt.callbacks.signals import SignalHandling

__all__ = ["GradientHorizon", "RunCheckpoint", "SafeCheckpointIO", "SignalHandling", "StepProgressBar"]
