"""Truncated backpropagation through time on PyTorch Lightning: carried state, contiguous lanes, any (k1, k2)."""

from lit_tbptt.carry import Carry
from lit_tbptt.cores import GRU, LSTM, RNN, RecurrentCore
from lit_tbptt.data import StreamedLanes, StridedLanes, Tokenizer
from lit_tbptt.errors import DivergenceError, InputError, SourceError
from lit_tbptt.lit_datamodule import TextLanesDataModule
from lit_tbptt.lit_language_model import LitLanguageModel
from lit_tbptt.lit_module import LitTBPTT
from lit_tbptt.model import RecurrentLM
from lit_tbptt.ranks import Ranks
from lit_tbptt.schedules import WarmupCosineLR
from lit_tbptt.tbptt import Truncation
from lit_tbptt.window import Batch, Window

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Batch",
    "Carry",
    "DivergenceError",
    "InputError",
    "LitLanguageModel",
    "LitTBPTT",
    "Ranks",
    "RecurrentCore",
    "RecurrentLM",
    "SourceError",
    "StreamedLanes",
    "StridedLanes",
    "TextLanesDataModule",
    "Tokenizer",
    "Truncation",
    "WarmupCosineLR",
    "Window",
]
