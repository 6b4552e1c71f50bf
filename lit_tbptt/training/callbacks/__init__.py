"""Callbacks for runs of `LitTBPTT`."""

from lit_tbptt.training.callbacks.adaptive_horizon import AdaptiveHorizon
from lit_tbptt.training.callbacks.checkpoint import RunCheckpoint, SafeCheckpointIO
from lit_tbptt.training.callbacks.gradient_horizon import GradientHorizon
from lit_tbptt.training.callbacks.non_monotonic_averaging import NonMonotonicAveraging
from lit_tbptt.training.callbacks.progress import StepProgressBar
from lit_tbptt.training.callbacks.signals import SignalHandling
from lit_tbptt.training.callbacks.text_samples import TextSamples

__all__ = [
    "AdaptiveHorizon",
    "GradientHorizon",
    "NonMonotonicAveraging",
    "RunCheckpoint",
    "SafeCheckpointIO",
    "SignalHandling",
    "StepProgressBar",
    "TextSamples",
]
