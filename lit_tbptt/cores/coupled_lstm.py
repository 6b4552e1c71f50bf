"""CoupledLSTM: an LSTM whose input gate is limited by its forget gate."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.cell import Cell
from lit_tbptt.cores.checks import check_sizes
from lit_tbptt.tbptt.state import State


class CoupledLSTM(Cell):
    """The LSTM of the compressor NNCP (Bellard 2019, "Lossless data compression with neural networks").

    c_t = f c_{t-1} + min(i, 1 - f) tanh(g) and h_t = o c_t, where f, i and o are sigmoids. Cells stay between -1 and 1,
    so the output needs no tanh. Before its sigmoid or tanh, each gate's W x_t + U h_{t-1} is divided by its root mean
    square over the units, multiplied by a gain and added to a bias. The gain is one number per gate, and biases start
    at 0, as in NNCP's program of 2021.

    NNCP stacks several: every layer sees the input too, and the output layer all layers (`Stack` with dense skips;
    there, layers see those below the next one too). lstm-compress and cmix have min(i, 1 - f) = 1 - f, as Greff et al.
    (2017) call coupled, and h_t = o tanh(c_t).

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
        self.gain = nn.Parameter(torch.ones(4, 1))
        self.bias = nn.Parameter(torch.zeros(4, hidden_size))

    def initial_state(self, num_lanes: int) -> State:
        """Returns zeros, `[lane, unit]`: `hidden` and `cell`."""
        zeros = self.bias.new_zeros(num_lanes, self.output_size)
        return {"hidden": zeros, "cell": zeros}

    def prepare(self, inputs: Float[Tensor, "lane time feature"]) -> Float[Tensor, "lane time gate"]:
        return self.input_weights(inputs)

    def step(self, x: Float[Tensor, "lane gate"], state: State) -> tuple[Float[Tensor, "lane output"], State]:
        sums = (x + self.recurrent_weights(state["hidden"])).unflatten(1, (4, self.output_size))
        normalized = nn.functional.rms_norm(sums, sums.shape[-1:], eps=1e-5)
        f, i, o, g = (normalized * self.gain + self.bias).unbind(1)
        f = torch.sigmoid(f)
        cell = f * state["cell"] + torch.minimum(torch.sigmoid(i), 1 - f) * torch.tanh(g)
        hidden = torch.sigmoid(o) * cell
        return hidden, {"hidden": hidden, "cell": cell}
