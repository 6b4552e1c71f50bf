"""Truncated backpropagation through time in plain torch: windows, state, carry, tasks, truncation, updates."""

from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import Task, WindowLoss
from lit_tbptt.tbptt.truncation import TruncatedLoss, Truncation
from lit_tbptt.tbptt.update import Optimizer, Run, RunLoss, StepPerWindow, Update, Updated
from lit_tbptt.tbptt.window import Batch, Window

__all__ = [
    "Batch",
    "Carry",
    "Optimizer",
    "Run",
    "RunLoss",
    "State",
    "StepPerWindow",
    "Task",
    "TruncatedLoss",
    "Truncation",
    "Update",
    "Updated",
    "Window",
    "WindowLoss",
]
