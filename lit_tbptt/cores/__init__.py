"""Recurrent cores: `(inputs, state) -> (outputs, state)`."""

from lit_tbptt.cores.awd_lstm import AWDLSTM
from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.cell import Cell
from lit_tbptt.cores.coupled_lstm import CoupledLSTM
from lit_tbptt.cores.echo_state import EchoState
from lit_tbptt.cores.fla import FlaCore
from lit_tbptt.cores.hugging_face import HuggingFaceCore
from lit_tbptt.cores.layer_norm_lstm import LayerNormLSTM
from lit_tbptt.cores.min_rnn import MinGRU, MinLSTM
from lit_tbptt.cores.rnn import GRU, LSTM, RNN
from lit_tbptt.cores.sru import SRU
from lit_tbptt.cores.stack import Stack
from lit_tbptt.cores.torch_core import TorchCore

__all__ = [
    "AWDLSTM",
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "Cell",
    "CoupledLSTM",
    "EchoState",
    "FlaCore",
    "HuggingFaceCore",
    "LayerNormLSTM",
    "MinGRU",
    "MinLSTM",
    "RecurrentCore",
    "Stack",
    "TorchCore",
]
