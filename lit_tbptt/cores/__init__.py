"""Recurrent cores: `(inputs, state) -> (outputs, state)`."""

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.echo_state import EchoState
from lit_tbptt.cores.hugging_face import HuggingFaceCore
from lit_tbptt.cores.rnn import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "EchoState", "HuggingFaceCore", "RecurrentCore"]
