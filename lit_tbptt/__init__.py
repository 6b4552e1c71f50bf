"""Truncated backpropagation through time on PyTorch Lightning: carried state, contiguous lanes, any (k1, k2)."""

from lit_tbptt.cores import GRU, LSTM, RNN, RecurrentCore
from lit_tbptt.data import StreamedLanes, StridedLanes, Tokenizer
from lit_tbptt.errors import DivergenceError, InputError, SourceError
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.optim import WarmupCosineLR
from lit_tbptt.ranks import Ranks
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.truncation import Truncation
from lit_tbptt.tbptt.window import Batch, Window
from lit_tbptt.training.language_model import LitLanguageModel
from lit_tbptt.training.module import LitTBPTT
from lit_tbptt.training.text_data import TextLanesDataModule

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
