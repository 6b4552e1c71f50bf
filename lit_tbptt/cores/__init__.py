"""Recurrent cores: `(inputs, state) -> (outputs, state)`."""

from lit_tbptt.cores.awd_lstm import AWDLSTM
from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.echo_state import EchoState
from lit_tbptt.cores.rnn import GRU, LSTM, RNN

__all__ = ["AWDLSTM", "GRU", "LSTM", "RNN", "EchoState", "RecurrentCore"]
