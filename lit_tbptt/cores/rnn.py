"""The cores RNN, LSTM and GRU, which wrap the modules of `torch.nn` (cuDNN on a GPU)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_tbptt.cores.base import OnePassCore
from lit_tbptt.cores.checks import check_probabilities, check_sizes
from lit_tbptt.cores.joining import join_in_time
from lit_tbptt.tbptt.state import State

_Layers = tuple[Tensor, ...]
"""The state of some layers in the layout of `torch.nn`: each tensor is `[layer, lane, feature]`."""


class _TorchRNN(OnePassCore):
    """Wraps a recurrent module of `torch.nn`, whose state has the lane axis second, so that it comes first."""

    state_names: tuple[str, ...] = ("hidden",)
    time_first = True  # otherwise torch would copy the inputs

    def __init__(
        self,
        module: Callable[..., nn.RNNBase],
        hidden_size: int,
        num_layers: int,
        dropout: float,
        learned_initial_state: bool,
        input_size: int | None,
        **options: Any,
    ) -> None:
        check_sizes(hidden_size=hidden_size, num_layers=num_layers, input_size=input_size)
        check_probabilities(dropout=dropout)
        super().__init__()
        self.input_size = hidden_size if input_size is None else input_size
        self.output_size = hidden_size
        self.num_layers = num_layers
        # cuDNN draws the dropout between layers from its own generator, whose state cannot be saved: a run could not be
        # resumed exactly, nor a window recomputed. So with dropout, every layer is a separate module.
        depth = 1 if dropout else num_layers
        self.rnn = nn.ModuleList(
            module(hidden_size if layer else self.input_size, hidden_size, depth, batch_first=True, **options)
            for layer in range(0, num_layers, depth)
        )
        self.dropout = nn.Dropout(dropout)
        self.initial = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(num_layers, hidden_size)) for name in self.state_names}
            if learned_initial_state
            else {}
        )

    def initial_state(self, num_lanes: int) -> State:
        """Returns `[lane, layer, feature]` tensors by name; zeros unless they are learned."""
        weight = self.rnn[0].weight_hh_l0
        assert isinstance(weight, Tensor)
        zeros = weight.new_zeros(num_lanes, self.num_layers, self.output_size)
        return {
            name: self.initial[name].expand_as(zeros) if name in self.initial else zeros for name in self.state_names
        }

    def _run(self, inputs: Tensor, state: State, far_edge: int) -> tuple[Tensor, State, State]:
        outputs = inputs
        inside: list[_Layers] = []
        after: list[_Layers] = []
        leaves = [state[name].chunk(len(self.rnn), 1) for name in self.state_names]
        for module, *given in zip(self.rnn, *leaves, strict=True):
            # cuDNN wants [layer, lane, feature], contiguous.
            moved = tuple(leaf.transpose(0, 1).contiguous() for leaf in given)
            outputs, *states = self._run_layers(module, self.dropout(outputs) if after else outputs, moved, far_edge)
            inside.append(states[0])
            after.append(states[1])
        last = self._merge(after, state)
        return outputs, last if far_edge == inputs.shape[1] else self._merge(inside, state), last

    def _run_layers(
        self, module: nn.Module, inputs: Tensor, state: _Layers, far_edge: int
    ) -> tuple[Tensor, _Layers, _Layers]:
        if far_edge in (0, inputs.shape[1]):
            outputs, after = self._call(module, inputs, state)
            return outputs, after if far_edge else state, after
        if len(state) == module.num_layers == 1:  # the outputs are the states
            outputs, after = self._call(module, inputs, state)
            return outputs, (outputs[None, :, far_edge - 1].clone(),), after  # a view would keep all outputs alive
        before, inside = self._call(module, inputs[:, :far_edge], state)
        rest, after = self._call(module, inputs[:, far_edge:], inside)
        return join_in_time(before, rest), inside, after

    def _call(self, module: nn.Module, inputs: Tensor, state: _Layers) -> tuple[Tensor, _Layers]:
        outputs, after = module(inputs, state if len(state) > 1 else state[0])
        return outputs, after if len(state) > 1 else (after,)

    def _merge(self, states: list[_Layers], given: State) -> State:
        merged = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*states, strict=True)]
        return {
            # Under autocast, modules return another dtype.
            name: leaf.transpose(0, 1).to(given[name].dtype)
            for name, leaf in zip(self.state_names, merged, strict=True)
        }


class RNN(_TorchRNN):
    """Elman's network: h_t = f(W x_t + U h_{t-1} + b).

    Args:
        hidden_size: Units per layer; also the number of output features per time step.
        num_layers: Number of stacked layers.
        nonlinearity: The activation function f.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is a trained parameter; otherwise it is zero.
        input_size: Input features per time step. Default: `hidden_size`.

    Raises:
        InputError: A size is below 1, or `dropout` is not at least 0 and below 1.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        dropout: float = 0.0,
        learned_initial_state: bool = False,
        input_size: int | None = None,
    ) -> None:
        super().__init__(
            nn.RNN, hidden_size, num_layers, dropout, learned_initial_state, input_size, nonlinearity=nonlinearity
        )


class LSTM(_TorchRNN):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), with forget gates (Gers 2000).

    Args:
        hidden_size: Units per layer; also the number of output features per time step.
        num_layers: Number of stacked layers.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is a trained parameter; otherwise it is zero.
        input_size: Input features per time step. Default: `hidden_size`.

    Raises:
        InputError: A size is below 1, or `dropout` is not at least 0 and below 1.
    """

    state_names = ("hidden", "cell")

    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 1,
        dropout: float = 0.0,
        learned_initial_state: bool = False,
        input_size: int | None = None,
    ) -> None:
        super().__init__(nn.LSTM, hidden_size, num_layers, dropout, learned_initial_state, input_size)


class GRU(_TorchRNN):
    """Gated recurrent unit (Cho 2014), in cuDNN's variant: the reset gate acts after the matrix product.

    Args:
        hidden_size: Units per layer; also the number of output features per time step.
        num_layers: Number of stacked layers.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is a trained parameter; otherwise it is zero.
        input_size: Input features per time step. Default: `hidden_size`.

    Raises:
        InputError: A size is below 1, or `dropout` is not at least 0 and below 1.
    """

    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 1,
        dropout: float = 0.0,
        learned_initial_state: bool = False,
        input_size: int | None = None,
    ) -> None:
        super().__init__(nn.GRU, hidden_size, num_layers, dropout, learned_initial_state, input_size)
