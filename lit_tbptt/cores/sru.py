"""SRU: a recurrent unit whose state is connected element by element."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.cell import Cell
from lit_tbptt.cores.checks import check_sizes
from lit_tbptt.tbptt.state import State


class SRU(Cell):
    """Simple recurrent unit (Lei et al. 2018, "Simple recurrent units for highly parallelizable recurrence").

    f = sigmoid(W_f x_t + v_f c_{t-1} + b_f), r = sigmoid(W_r x_t + v_r c_{t-1} + b_r),
    c_t = f c_{t-1} + (1 - f) W x_t, and h_t = r c_t + (1 - r) a x_t. All products with the state are element by
    element, so a window needs one matrix product. The factor a = sqrt(3) keeps the variance of x_t in h_t while r is
    one half, as it is at the start. With another `input_size`, a W_s x_t takes the place of a x_t.

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
        self.has_projection = self.input_size != hidden_size
        self.input_weights = nn.Linear(self.input_size, (3 + self.has_projection) * hidden_size, bias=False)
        self.recurrent_weights = nn.Parameter(torch.empty(2 * hidden_size).uniform_(-(1.5**0.5), 1.5**0.5))
        self.bias = nn.Parameter(torch.zeros(2 * hidden_size))
        limit = (3 / self.input_size) ** 0.5
        nn.init.uniform_(self.input_weights.weight, -limit, limit)

    def initial_state(self, num_lanes: int) -> State:
        """Returns zeros, `[lane, unit]`."""
        return {"cell": self.bias.new_zeros(num_lanes, self.output_size)}

    def prepare(self, inputs: Float[Tensor, "lane time feature"]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gates' input terms, W x and a x; `[lane, time, ...]` each."""
        products = self.input_weights(inputs)
        gates, new, skipped = products.tensor_split([2 * self.output_size, 3 * self.output_size], -1)
        return gates + self.bias, new, 3**0.5 * (skipped if self.has_projection else inputs)

    def step(self, x: tuple[Tensor, Tensor, Tensor], state: State) -> tuple[Float[Tensor, "lane output"], State]:
        gates, new, skipped = x
        cell = state["cell"]
        f, r = torch.sigmoid(gates + self.recurrent_weights * torch.cat([cell, cell], 1)).chunk(2, 1)
        cell = new + f * (cell - new)
        return skipped + r * (cell - skipped), {"cell": cell}
