"""Truncated backpropagation through time on PyTorch Lightning: carried state, contiguous lanes, any (k1, k2)."""

from lit_tbptt.cores import GRU, LSTM, RNN, RecurrentCore
from lit_tbptt.data import StreamedLanes, StridedLanes, Tokenizer
from lit_tbptt.errors import DivergenceError, InputError, SourceError
from lit_tbptt.files.run_folder import RunFolder
from lit_tbptt.models.adaptive_softmax import Adaptive
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.metrics import summed_nats
from lit_tbptt.optim import WarmupCosineLR
from lit_tbptt.ranks import Rank
from lit_tbptt.tbptt import (
    Batch,
    Carry,
    Run,
    StepPerWindow,
    Task,
    TruncatedLoss,
    Truncation,
    Update,
    Updated,
    Window,
    WindowLoss,
)
from lit_tbptt.training.callbacks import GradientHorizon, RunCheckpoint, SignalHandling
from lit_tbptt.training.evaluation import Evaluation
from lit_tbptt.training.language_model import LitLanguageModel
from lit_tbptt.training.loggers import run_loggers
from lit_tbptt.training.module import LitTBPTT
from lit_tbptt.training.text_data import TextLanesDataModule

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Adaptive",
    "Batch",
    "Carry",
    "DivergenceError",
    "Evaluation",
    "GradientHorizon",
    "InputError",
    "LitLanguageModel",
    "LitTBPTT",
    "Rank",
    "RecurrentCore",
    "RecurrentLM",
    "Run",
    "RunCheckpoint",
    "RunFolder",
    "SignalHandling",
    "SourceError",
    "StepPerWindow",
    "StreamedLanes",
    "StridedLanes",
    "Task",
    "TextLanesDataModule",
    "Tokenizer",
    "TruncatedLoss",
    "Truncation",
    "Update",
    "Updated",
    "WarmupCosineLR",
    "Window",
    "WindowLoss",
    "run_loggers",
    "summed_nats",
]
