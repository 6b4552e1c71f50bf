"""The classic cores, over `torch.nn`'s RNN, LSTM and GRU (cuDNN on a GPU)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, cast_like


class _TorchCore(RecurrentCore):
    """Puts the lane axis first in the state of a `torch.nn` recurrent module, which has it second."""

    state_names: tuple[str, ...] = ("hidden",)

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
        for name, value in (("hidden_size", hidden_size), ("num_layers", num_layers), ("input_size", input_size)):
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: must be 1 or more")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout}: must be at least 0 and below 1")
        super().__init__()
        self.input_size = hidden_size if input_size is None else input_size
        self.output_size = hidden_size
        self.num_layers = num_layers
        # cuDNN draws the dropout between layers from a state of its own, which nothing can save: a run could not be
        # resumed exactly, nor a window computed again. So with dropout every layer is a module of its own.
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
        """Returns `[lane, layer, feature]` tensors by name, zero unless they are learned."""
        zeros = next(self.rnn.parameters()).new_zeros(num_lanes, self.num_layers, self.output_size)
        return {
            name: self.initial[name].expand_as(zeros) if name in self.initial else zeros for name in self.state_names
        }

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        outputs = inputs
        after: list[tuple[Tensor, ...]] = []
        leaves = [state[name].chunk(len(self.rnn), 1) for name in self.state_names]
        for module, *given in zip(self.rnn, *leaves, strict=True):
            # cuDNN wants [layer, lane, feature], contiguous.
            moved = tuple(leaf.transpose(0, 1).contiguous() for leaf in given)
            outputs, last = module(self.dropout(outputs) if after else outputs, moved if len(moved) > 1 else moved[0])
            after.append(last if len(moved) > 1 else (last,))
        merged = [torch.cat(parts).transpose(0, 1) for parts in zip(*after, strict=True)]
        return outputs, cast_like(dict(zip(self.state_names, merged, strict=True)), state)


class RNN(_TorchCore):
    """Elman's network: h_t = f(W x_t + U h_{t-1} + b).

    Args:
        hidden_size: Units per layer; also the features per time step that come out.
        num_layers: Layers, each fed by the one below.
        nonlinearity: f.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is trained; zero otherwise.
        input_size: Features per time step that go in. Left out: `hidden_size`.
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


class LSTM(_TorchCore):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), with forget gates (Gers 2000).

    Args:
        hidden_size: Units per layer; also the features per time step that come out.
        num_layers: Layers, each fed by the one below.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is trained; zero otherwise.
        input_size: Features per time step that go in. Left out: `hidden_size`.
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


class GRU(_TorchCore):
    """Gated recurrent unit (Cho 2014), in cuDNN's variant: the reset gate acts after the matrix product.

    Args:
        hidden_size: Units per layer; also the features per time step that come out.
        num_layers: Layers, each fed by the one below.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is trained; zero otherwise.
        input_size: Features per time step that go in. Left out: `hidden_size`.
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
