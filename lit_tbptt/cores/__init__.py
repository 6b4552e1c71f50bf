"""Recurrent cores: `(inputs, state) -> (outputs, state)`."""

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.echo_state import EchoState
from lit_tbptt.cores.fla import FlaCore
from lit_tbptt.cores.rnn import GRU, LSTM, RNN
from lit_tbptt.cores.torch_core import TorchCore

__all__ = ["GRU", "LSTM", "RNN", "EchoState", "FlaCore", "RecurrentCore", "TorchCore"]
