"""LayerNormLSTM: an LSTM whose gates and cell are normalized."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.cell import Cell
from lit_tbptt.cores.checks import check_sizes
from lit_tbptt.tbptt.state import State


class LayerNormLSTM(Cell):
    """LSTM with layer normalization (Ba et al. 2016, equations 20 to 22).

    (f, i, o, g) = LN(U h_{t-1}) + LN(W x_t) + b, c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g), and
    h_t = sigmoid(o) tanh(LN(c_t)). Each LN has gains of its own. The paper adds a bias in every LN besides b: here b is
    the only one of the sum, because they would be added up. It starts at 1 for f and at 0 for the others.

    Args:
        hidden_size: Units; also the number of output features per time step.
        input_size: Input features per time step. Default: `hidden_size`.

    Raises:
        InputError: A size is below 1.
    """

    def __init__(self, hidden_size: int = 256, input_size: int | None = None) -> None:
        check_sizes(hidden_size=hidden_size, input_size=input_size)
        super().__init__()
        self.input_size = hidden_size if input_size is None else input_size
        self.output_size = hidden_size
        self.input_weights = nn.Linear(self.input_size, 4 * hidden_size, bias=False)
        self.recurrent_weights = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.input_norm = nn.LayerNorm(4 * hidden_size)
        self.recurrent_norm = nn.LayerNorm(4 * hidden_size, bias=False)
        self.cell_norm = nn.LayerNorm(hidden_size)
        nn.init.ones_(self.input_norm.bias[:hidden_size])

    def initial_state(self, num_lanes: int) -> State:
        """Returns zeros, `[lane, unit]`: `hidden` and `cell`."""
        zeros = self.recurrent_weights.weight.new_zeros(num_lanes, self.output_size)
        return {"hidden": zeros, "cell": zeros}

    def prepare(self, inputs: Float[Tensor, "lane time feature"]) -> Float[Tensor, "lane time gate"]:
        return self.input_norm(self.input_weights(inputs))

    def step(self, x: Float[Tensor, "lane gate"], state: State) -> tuple[Float[Tensor, "lane output"], State]:
        f, i, o, g = (x + self.recurrent_norm(self.recurrent_weights(state["hidden"]))).chunk(4, 1)
        cell = torch.sigmoid(f) * state["cell"] + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(self.cell_norm(cell))
        return hidden, {"hidden": hidden, "cell": cell}
