"""The core FlaCore, which wraps the layers of flash-linear-attention (the package `fla`)."""

import importlib
import os
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.checks import check_sizes
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, accumulator, cast_like


class FlaCore(RecurrentCore):
    """A layer of flash-linear-attention with its state carried: `fla` itself trains without a cache.

    GatedLinearAttention (Yang et al. 2023), HGRN2Attention (Qin et al. 2024), GatedDeltaNet (Yang et al. 2024) or
    RWKV7Attention (Peng et al. 2025), from `fla.layers`. It is the layer alone, without the residual connection, the
    normalization and the feed-forward layer of a block. The gradient of the state passes through `fla`'s kernels.

    Needs the package `fla` (`pip install lit_tbptt[fla]`) and a GPU for which Triton compiles.

    Args:
        layer: The name of the layer's class.
        hidden_size: Input and output features per time step.
        options: Other arguments of the layer's class, such as `num_heads`. The mode `fused_chunk` is refused: it has
            its state in another layout.

    Raises:
        InputError: `hidden_size` is below 1, the package is missing, or the layer's class refuses its arguments.
    """

    def __init__(self, layer: str, hidden_size: int = 256, options: dict[str, Any] | None = None) -> None:
        check_sizes(hidden_size=hidden_size)
        super().__init__()
        options = options or {}
        if layer not in _LEAVES:
            raise InputError(f"layer={layer!r}: must be one of {', '.join(_LEAVES)}")
        if options.get("mode") == "fused_chunk":
            raise InputError("options: mode=fused_chunk has its state in another layout; use mode=chunk")
        try:
            layers = importlib.import_module("fla.layers")
        except ImportError as error:
            raise InputError(
                f"layer={layer!r}: needs flash-linear-attention and Triton; pip install lit_tbptt[fla] ({error})"
            ) from error
        try:
            # Its place in a model: layers other than the first of RWKV7 also take what the first has computed.
            self.layer = getattr(layers, layer)(hidden_size=hidden_size, layer_idx=0, **options)
        except (TypeError, ValueError, AssertionError) as error:
            raise InputError(f"layer={layer!r} with options={options}: {error}") from error
        self.input_size = self.output_size = hidden_size
        self._leaves = _LEAVES[layer]

    def initial_state(self, num_lanes: int) -> State:
        """Returns zeros: `recurrent`, `[lane, head, ..., ...]` in float32, and `inputs`, the last ones of convolutions.

        `inputs` has a tensor `[lane, feature, kernel]` for each short convolution; for RWKV7, which takes the
        input before each, it has one `[lane, feature]`.
        """
        weight = self.layer.o_proj.weight
        recurrent, inputs = self._leaves(self.layer)
        return {
            # The kernels accumulate in float32, whatever the weights have.
            "recurrent": accumulator(weight, num_lanes, *recurrent),
            "inputs": tuple(weight.new_zeros(num_lanes, *sizes) for sizes in inputs),
        }

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        """Runs the layer with the state as its cache.

        Raises:
            InputError: The inputs are on the CPU.
        """
        if inputs.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError("FlaCore on the CPU: its kernels need a GPU; train on one (trainer.accelerator=gpu)")
        if len(inputs) == 0:  # no kernel runs over nothing
            return inputs, state
        cache = _Cache(state)
        outputs = self.layer(inputs, past_key_values=cache, use_cache=True)[0]
        return outputs, cast_like(cache.state(), state)


class _Cache:
    """What a layer of `fla` asks of a cache, for one layer; `fla`'s own is changed in place."""

    def __init__(self, state: State) -> None:
        # A single token without a gradient changes the inputs of convolutions in place.
        inputs = tuple(leaf.clone() for leaf in state["inputs"])
        self._is_shift = len(inputs) == 1
        self._content = {
            "recurrent_state": state["recurrent"],
            "conv_state": (inputs[0] if self._is_shift else inputs) if inputs else None,
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, layer: int) -> dict[str, Any]:
        return self._content

    def update(self, layer_idx: int, recurrent_state: Tensor, conv_state: Any = None, **_: Any) -> None:
        self._content = {"recurrent_state": recurrent_state, "conv_state": conv_state}

    def state(self) -> State:
        inputs = self._content["conv_state"]
        inputs = () if inputs is None else (inputs,) if self._is_shift else tuple(inputs)
        return {"recurrent": self._content["recurrent_state"], "inputs": inputs}


def _convolutions(layer: Any, *sizes: int) -> list[tuple[int, ...]]:
    return [(size, layer.conv_size) for size in sizes] if layer.use_short_conv else []


# The sizes of a lane's recurrent state and last inputs, as the layers of fla 0.6 have them.
_LEAVES: dict[str, Any] = {
    "GatedLinearAttention": lambda layer: (
        (layer.num_heads, layer.head_v_dim, layer.head_k_dim),
        _convolutions(layer, layer.key_dim, layer.key_dim_per_group, layer.value_dim_per_group),
    ),
    "HGRN2Attention": lambda layer: (
        (layer.num_heads, layer.head_i_dim, layer.head_f_dim),
        _convolutions(layer, layer.forget_dim, layer.forget_dim, layer.input_dim),
    ),
    "GatedDeltaNet": lambda layer: (
        (layer.num_v_heads, layer.head_v_dim, layer.head_k_dim),
        _convolutions(layer, layer.key_dim, layer.key_dim, layer.value_dim),
    ),
    "RWKV7Attention": lambda layer: ((layer.num_heads, layer.head_dim, layer.head_v_dim), [(layer.hidden_size,)]),
}
