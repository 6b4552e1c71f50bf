"""Truncated backpropagation through time in plain torch: windows, state, carry, tasks, truncation, updates."""

from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.closure import StepWithClosure
from lit_tbptt.tbptt.random_truncation import FallingProbability, RandomTruncation
from lit_tbptt.tbptt.run import Run, RunLoss
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import Task, WindowLoss
from lit_tbptt.tbptt.truncation import TruncatedLoss, Truncation
from lit_tbptt.tbptt.update import Optimizer, Place, StepPerWindow, StepPerWindows, Update, Updated
from lit_tbptt.tbptt.window import Batch, Window

__all__ = [
    "Batch",
    "Carry",
    "FallingProbability",
    "Optimizer",
    "Place",
    "RandomTruncation",
    "Run",
    "RunLoss",
    "State",
    "StepPerWindow",
    "StepPerWindows",
    "StepWithClosure",
    "Task",
    "TruncatedLoss",
    "Truncation",
    "Update",
    "Updated",
    "Window",
    "WindowLoss",
]
