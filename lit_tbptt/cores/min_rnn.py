"""The cores MinGRU and MinLSTM, whose gates depend on the inputs alone."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lit_tbptt.cores.base import OnePassCore
from lit_tbptt.cores.checks import check_probabilities, check_sizes
from lit_tbptt.cores.scan import scan
from lit_tbptt.tbptt.state import State, accumulator


class _MinRNN(OnePassCore):
    """h_t = (1 - z_t) h_{t-1} + z_t g(V x_t), with g(v) = v + 1/2 if v >= 0, otherwise sigmoid(v).

    The recurrence and its state are in float32 at least, the matrix products in the dtype of the weights or of
    autocast.
    """

    time_first = True
    num_gates: int

    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 1,
        dropout: float = 0.0,
        learned_initial_state: bool = False,
        input_size: int | None = None,
        output_size: int | None = None,
    ) -> None:
        check_sizes(hidden_size=hidden_size, num_layers=num_layers, input_size=input_size, output_size=output_size)
        check_probabilities(dropout=dropout)
        super().__init__()
        self.input_size = hidden_size if input_size is None else input_size
        self.output_size = hidden_size if output_size is None else output_size
        self.hidden_size = hidden_size
        self.gates = nn.ModuleList(
            nn.Linear(self.output_size if layer else self.input_size, (1 + self.num_gates) * hidden_size)
            for layer in range(num_layers)
        )
        self.projections = nn.ModuleList(
            nn.Identity() if output_size is None else nn.Linear(hidden_size, output_size) for _ in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        zeros = torch.zeros(num_layers, hidden_size)
        self.initial = nn.Parameter(zeros) if learned_initial_state else None

    @abstractmethod
    def rates(self, gates: Float[Tensor, "time lane gate"]) -> Float[Tensor, "time lane unit"]:
        """Returns z_t, given W x_t."""

    def initial_state(self, num_lanes: int) -> State:
        """Returns `[lane, layer, feature]` in float32 at least; zeros unless they are learned."""
        weight = self.gates[0].weight
        assert isinstance(weight, Tensor)
        zeros = accumulator(weight, num_lanes, len(self.gates), self.hidden_size)
        return {"hidden": zeros if self.initial is None else self.initial.to(zeros.dtype).expand_as(zeros)}

    def _run(self, inputs: Tensor, state: State, far_edge: int) -> tuple[Tensor, State, State]:
        given, outputs = state["hidden"], inputs
        inside, after = [], []
        for layer, (gates, projection) in enumerate(zip(self.gates, self.projections, strict=True)):
            mixed = gates((self.dropout(outputs) if layer else outputs).transpose(0, 1))
            precise = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
            candidates, of_rates = precise.split([self.hidden_size, self.num_gates * self.hidden_size], -1)
            rates = self.rates(of_rates)
            candidates = candidates.relu() + candidates.clamp(max=0).sigmoid()  # g, in less time than torch.where takes
            start = given[:, layer].to(precise.dtype)
            states = scan(rates, rates * candidates, start)
            inside.append(states[far_edge - 1] if far_edge else start)
            after.append(states[-1])
            outputs = projection(states.to(mixed.dtype)).transpose(0, 1)
        # Stacked into a new tensor: a view would keep the states of all time steps alive.
        last = {"hidden": torch.stack(after, 1).to(given.dtype)}
        if far_edge in (0, inputs.shape[1]):
            return outputs, last if far_edge else state, last
        return outputs, {"hidden": torch.stack(inside, 1).to(given.dtype)}, last


class MinGRU(_MinRNN):
    """minGRU (Feng et al. 2024, "Were RNNs all we needed?"): h_t = (1 - z_t) h_{t-1} + z_t g(V x_t).

    The gate z_t = sigmoid(W x_t) does not depend on the state, so the matrix products of a window are one, and the
    recurrence is element by element; g(v) is v + 1/2 if v >= 0, otherwise sigmoid(v). The paper's form in logarithms
    has the same values, for positive states; this one takes any state. V and W come with biases.

    Args:
        hidden_size: Features of the state of each layer.
        num_layers: Number of stacked layers.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is a trained parameter; otherwise it is zero.
        input_size: Input features per time step. Default: `hidden_size`.
        output_size: Output features per time step, of a linear layer over each layer's states, with a bias. The
            published language models have one, with states twice as large. Default: the states are the outputs.

    Raises:
        InputError: A size is below 1, or `dropout` is not at least 0 and below 1.
    """

    num_gates = 1

    def rates(self, gates: Float[Tensor, "time lane gate"]) -> Float[Tensor, "time lane unit"]:
        return gates.sigmoid()


class MinLSTM(_MinRNN):
    """minLSTM (Feng et al. 2024, "Were RNNs all we needed?"): h_t = f_t h_{t-1} + i_t g(V x_t).

    The gates f_t = F / (F + I) and i_t = I / (F + I), with F = sigmoid(W_f x_t) and I = sigmoid(W_i x_t), do not depend
    on the state and sum to 1: it is a MinGRU whose gate is computed in another way. V, W_i and W_f come with biases.

    Args:
        hidden_size: Features of the state of each layer.
        num_layers: Number of stacked layers.
        dropout: Probability of dropping a feature between layers, in training.
        learned_initial_state: Whether the initial state is a trained parameter; otherwise it is zero.
        input_size: Input features per time step. Default: `hidden_size`.
        output_size: Output features per time step, of a linear layer over each layer's states, with a bias. The
            published language models have one, with states twice as large. Default: the states are the outputs.

    Raises:
        InputError: A size is below 1, or `dropout` is not at least 0 and below 1.
    """

    num_gates = 2

    def rates(self, gates: Float[Tensor, "time lane gate"]) -> Float[Tensor, "time lane unit"]:
        of_input, of_forget = logsigmoid(gates).chunk(2, -1)
        return (of_input - of_forget).sigmoid()  # also where both gates vanish
