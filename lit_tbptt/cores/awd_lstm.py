"""The core AWDLSTM: a stack of LSTM layers of which recurrent weights are dropped, at the speed of torch's LSTM."""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import dropout as drop

from lit_tbptt.cores.base import OnePassCore
from lit_tbptt.cores.checks import check_probabilities, check_sizes
from lit_tbptt.cores.customized import is_customized
from lit_tbptt.cores.masks import check_noise, shared_mask
from lit_tbptt.cores.rnn import LSTM
from lit_tbptt.tbptt.state import State


class AWDLSTM(OnePassCore):
    """The LSTM stack of Merity, Keskar & Socher (2017), "Regularizing and optimizing LSTM language models".

    In training, elements of the recurrent matrices U are dropped (the paper's section 2), and features between layers
    (section 4.2). Both masks are drawn once per window; its context shares them. Kept elements are divided by 1 - p, as
    in the paper's code; in eval mode all weights are used as they are. Dropped weights are the same in all lanes and on
    all ranks, features are dropped by lane. The paper's other dropouts are options of the language model:
    `vocabulary_dropout`, `embedding_dropout` and `output_dropout` with `dropout_over_time="shared"`.

    Args:
        hidden_size: Units per layer, except for the last one.
        num_layers: Number of stacked layers.
        weight_drop: Probability of dropping an element of a recurrent matrix for a window, in training.
        dropout: Probability of dropping a feature between layers for a window, in training.
        input_size: Input features per time step.
        output_size: Units of the last layer; also the number of output features per time step. Default: `input_size`,
            so that the output layer can use the embedding's matrix.

    Raises:
        InputError: A number is out of its range.
    """

    time_first = True

    def __init__(
        self,
        hidden_size: int = 1150,
        num_layers: int = 3,
        weight_drop: float = 0.5,
        dropout: float = 0.25,
        input_size: int = 400,
        output_size: int | None = None,
    ) -> None:
        output_size = input_size if output_size is None else output_size
        check_sizes(hidden_size=hidden_size, num_layers=num_layers, input_size=input_size, output_size=output_size)
        check_probabilities(weight_drop=weight_drop, dropout=dropout)
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.dropout = dropout
        self.weight_drop = weight_drop
        sizes = [input_size, *[hidden_size] * (num_layers - 1), output_size]
        self.layers: Any = nn.ModuleList(_Layer(after, weight_drop, before) for before, after in pairwise(sizes))

    def initial_state(self, num_lanes: int) -> State:
        """Returns zeros: for every layer `hidden` and `cell`, `[lane, 1, unit]`."""
        return [layer.initial_state(num_lanes) for layer in self.layers]

    def begin_window(self, num_lanes: int) -> dict[str, list] | None:
        """Draws, by layer, the factors of U and of the features that enter it: 0, or 1 / (1 - p)."""
        if not self.training or not (self.weight_drop or self.dropout):
            return None
        noise: dict[str, list] = {"weights": [], "features": []}
        for number, layer in enumerate(self.layers):
            noise["weights"].append(layer.begin_window(num_lanes))
            ones = layer.rnn[0].weight_ih_l0.new_ones(num_lanes, 1, layer.input_size)
            noise["features"].append(drop(ones, self.dropout) if number and self.dropout else None)
        return noise

    def _run(self, inputs: Tensor, state: State, far_edge: int) -> tuple[Tensor, State, State]:
        noise = self._noise_by_layer()
        outputs, inside, after = inputs, [], []
        for layer, given, weights, features in zip(self.layers, state, *noise, strict=True):
            if layer.noise is not weights:  # setting an attribute of a torch module is slow
                layer.noise = weights
            if features is not None:
                outputs = outputs * features.to(outputs.dtype)
            outputs, *states = layer.forward_through(outputs, given, far_edge)
            inside.append(states[0])
            after.append(states[1])
        return outputs, inside, after

    def _noise_by_layer(self) -> tuple[list, list]:
        if not self.training or not (self.weight_drop or self.dropout):
            return [None] * len(self.layers), [None] * len(self.layers)
        check_noise(self.noise, f"weight_drop={self.weight_drop}, dropout={self.dropout}")
        return self.noise["weights"], self.noise["features"]


class _Layer(LSTM):
    """One layer. The dropped matrix is computed whenever a part of a window is run, with the weights of the moment."""

    def __init__(self, hidden_size: int, weight_drop: float, input_size: int) -> None:
        super().__init__(hidden_size, input_size=input_size)
        self.weight_drop = weight_drop

    def begin_window(self, num_lanes: int) -> Float[Tensor, "gates unit"] | None:
        if not self.weight_drop:
            return None
        weight = self.rnn[0].weight_hh_l0
        assert isinstance(weight, Tensor)
        return shared_mask(weight, self.weight_drop)

    def _call(self, module: Any, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.noise is None:
            return super()._call(module, inputs, state)
        dropped = module.weight_hh_l0 * self.noise
        if is_customized(module):
            outputs, after = functional_call(module, {"weight_hh_l0": dropped}, (inputs, state))
            return outputs, after
        weights = [module.weight_ih_l0, dropped, module.bias_ih_l0, module.bias_hh_l0]
        if dropped.is_cuda:
            # In the order in which cuDNN stores them; otherwise it would warn, and copy them itself.
            flat = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
            weights = [part.view_as(weight) for part, weight in zip(flat, weights, strict=True)]
        # The function that nn.LSTM calls. With functional_call, nn.LSTM would move its parameters to other memory on a
        # GPU, in every call.
        outputs, *after = torch.lstm(inputs, state, weights, True, 1, 0.0, True, False, True)
        return outputs, tuple(after)
