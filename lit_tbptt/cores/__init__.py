"""Recurrent cores: `(inputs, state) -> (outputs, state)`."""

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.echo_state import EchoState
from lit_tbptt.cores.min_rnn import MinGRU, MinLSTM
from lit_tbptt.cores.rnn import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "EchoState", "MinGRU", "MinLSTM", "RecurrentCore"]
