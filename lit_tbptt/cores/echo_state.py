"""The core EchoState: a fixed random recurrent network, of which only a readout is trained."""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.checks import check_sizes
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State


class EchoState(RecurrentCore):
    """Echo-state network (Jaeger 2001): h_t = (1 - leak) h_{t-1} + leak tanh(W x_t + U h_{t-1} + b), all fixed.

    W, U and b are random and not trained: they are buffers, saved in checkpoints. Each unit gets input from
    `num_connections` units, so a time step costs `num_connections * hidden_size`. What reads the outputs is trained by
    gradient, or in closed form by `RidgeReadout`.

    Args:
        hidden_size: Units; also the number of output features per time step. Building the core takes the eigenvalues
            of U: half a second of CPU time for 1,000 units, five times as much for 2,000.
        spectral_radius: The largest absolute eigenvalue of U. Larger values give a longer memory; above 1 the state may
            depend on its start forever, unless the inputs are large.
        leak: The share of the state that is replaced at each time step: 1 replaces it all, small values suit slow
            signals.
        input_scale: The weights W are uniform from -input_scale to input_scale, divided by the square root of
            `input_size`.
        bias_scale: The biases b are uniform from -bias_scale to bias_scale.
        num_connections: Units that each unit gets input from; all of them if there are fewer.
        seed: Determines W, U and b.
        input_size: Input features per time step. Default: `hidden_size`.

    Attributes:
        sources: `[unit, connection]`, the units that each unit gets input from.
        recurrent_weights: `[unit, connection]`, the entries of U.
        input_weights: `[unit, feature]`, W.
        bias: `[unit]`, b.

    Raises:
        InputError: A number is out of its range.
    """

    sources: Int[Tensor, "unit connection"]
    recurrent_weights: Float[Tensor, "unit connection"]
    input_weights: Float[Tensor, "unit feature"]
    bias: Float[Tensor, " unit"]

    def __init__(
        self,
        hidden_size: int = 1000,
        spectral_radius: float = 0.9,
        leak: float = 1.0,
        input_scale: float = 1.0,
        bias_scale: float = 0.1,
        num_connections: int = 10,
        seed: int = 1,
        input_size: int | None = None,
    ) -> None:
        check_sizes(hidden_size=hidden_size, num_connections=num_connections, input_size=input_size)
        scales = {"spectral_radius": spectral_radius, "input_scale": input_scale, "bias_scale": bias_scale}
        for name, scale in scales.items():
            if not 0 <= scale < math.inf:
                raise InputError(f"{name}={scale}: must be 0 or more")
        if not 0 < leak <= 1:
            raise InputError(f"leak={leak}: must be above 0 and at most 1")
        super().__init__()
        self.input_size = hidden_size if input_size is None else input_size
        self.output_size = hidden_size
        self.leak = leak
        generator = torch.Generator().manual_seed(seed)

        def uniform(*sizes: int) -> Tensor:
            return 2 * torch.rand(*sizes, dtype=torch.float64, generator=generator) - 1

        # The largest numbers of each row: a draw without replacement.
        order = torch.rand(hidden_size, hidden_size, dtype=torch.float32, generator=generator)
        sources = order.topk(min(num_connections, hidden_size)).indices.sort().values
        weights = uniform(*sources.shape)
        dense = torch.zeros(hidden_size, hidden_size, dtype=torch.float64).scatter_(1, sources, weights)
        weights *= spectral_radius / torch.linalg.eigvals(dense).abs().max()
        inputs = uniform(hidden_size, self.input_size) / self.input_size**0.5
        dtype = torch.get_default_dtype()
        self.register_buffer("sources", sources)
        self.register_buffer("recurrent_weights", weights.to(dtype))
        self.register_buffer("input_weights", (input_scale * inputs).to(dtype))
        self.register_buffer("bias", (bias_scale * uniform(hidden_size)).to(dtype))

    def initial_state(self, num_lanes: int) -> State:
        """Returns zeros, `[lane, unit]`."""
        return {"hidden": self.bias.new_zeros(num_lanes, self.output_size)}

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        given = state["hidden"]
        driven = nn.functional.linear(inputs, self.input_weights, self.bias).to(given.dtype)
        backward = torch.is_grad_enabled() and (driven.requires_grad or given.requires_grad)
        product = _RecurrentProduct(self.sources, self.recurrent_weights, backward)
        # [unit, lane]: a sparse matrix is multiplied from the left.
        hidden, outputs = given.t(), []
        for step in driven.permute(1, 2, 0).contiguous():
            hidden = torch.lerp(hidden, torch.tanh(step + product(hidden)), self.leak)
            outputs.append(hidden)
        return torch.stack(outputs).permute(2, 0, 1), {"hidden": hidden.t().contiguous()}


class _RecurrentProduct:
    """Multiplies states by the sparse matrix U.

    In compressed rows: for 1,000 units and 16 lanes a product takes 18 microseconds of one CPU core, a dense one 390.
    For the backward pass, U is transposed once: torch's own would do so at every time step, in 600 microseconds.
    """

    def __init__(self, sources: Tensor, weights: Tensor, backward: bool) -> None:
        num_units, num_connections = sources.shape
        # There is no sparse product of half precision on the CPU.
        self.dtype = torch.promote_types(weights.dtype, torch.float32)
        starts = torch.arange(0, sources.numel() + 1, num_connections, device=sources.device)
        values = weights.flatten().to(self.dtype)
        sizes = num_units, num_units
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.matrix = torch.sparse_csr_tensor(starts, sources.flatten(), values, sizes, check_invariants=False)
            self.transposed = self.matrix.t().to_sparse_csr() if backward else None

    def __call__(self, hidden: Float[Tensor, "unit lane"]) -> Float[Tensor, "unit lane"]:
        product = _Product.apply(hidden.to(self.dtype), self.matrix, self.transposed)
        return product.to(hidden.dtype)


class _Product(torch.autograd.Function):
    """A fixed sparse matrix times a dense one, with the transposed matrix for the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, transposed: Tensor | None) -> Tensor:
        ctx.matrices = transposed, matrix
        with torch.autocast(hidden.device.type, enabled=False):  # also in a backward pass that runs under autocast
            return torch.sparse.mm(matrix, hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradients[0], *ctx.matrices), None, None
