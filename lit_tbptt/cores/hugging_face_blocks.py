"""The blocks of `transformers`' recurrent models, run as functions `(inputs, state) -> (outputs, state)`.

The library's own cached calls are not used, because in 5.23 most of them are wrong or not differentiable for a window:
Mamba and FalconMamba drop the state-space state when a call has more than one time step, RWKV, xLSTM and Mamba2 change
the cache in place, and RWKV mixes lanes in calls of one time step. So each block is called with its state as an
argument, or, where a block reads its state from the cache only, its formula is written here over the block's layers.
"""

import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.errors import InputError

BlockState = dict[str, Tensor]
"""The state of a block by name, `[lane, ...]`."""


class BlockKind(ABC):
    """How the blocks of a model type are run.

    Attributes:
        blocks: The attribute of the model that holds its blocks.
        norm: The attribute of the model that holds the last normalization.
    """

    blocks: str = "layers"
    norm: str = "norm_f"

    def check(self, settings: dict[str, Any]) -> None:
        """Checks settings of the model type that the library does not check."""

    def prepare(self, block: Any) -> None:
        """Changes a new block where `run` needs it."""

    @abstractmethod
    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        """Returns the state of a block after a reset."""

    @abstractmethod
    def run(
        self, block: Any, inputs: Float[Tensor, "lane time feature"], state: BlockState
    ) -> tuple[Float[Tensor, "lane time feature"], BlockState]:
        """Runs a block over a window."""


class MambaBlocks(BlockKind):
    """Mamba (Gu & Dao 2023, algorithm 2) and FalconMamba, which also normalizes dt, B and C."""

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        mixer = block.mixer
        return {
            "convolution": _convolution_state(mixer.conv1d, num_lanes),
            "state_space": _accumulator(mixer.A_log, num_lanes, *mixer.A_log.shape),
        }

    def run(self, block: Any, inputs: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        mixer = block.mixer
        channels, gate = mixer.in_proj(_normalized(block, inputs)).chunk(2, -1)
        channels, convolution = _convolve(mixer, channels, state["convolution"])
        sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
        time_step, input_weights, output_weights = mixer.x_proj(channels).split(sizes, -1)
        if hasattr(mixer, "dt_layernorm"):  # FalconMamba
            time_step = mixer.dt_layernorm(time_step)
            input_weights, output_weights = mixer.b_layernorm(input_weights), mixer.c_layernorm(output_weights)
        time_step = nn.functional.softplus(mixer.dt_proj(time_step).to(state["state_space"].dtype))
        scanned, state_space = selective_scan(
            channels, time_step, -torch.exp(mixer.A_log.to(time_step.dtype)), input_weights, output_weights,
            state["state_space"],
        )  # fmt: skip
        scanned = (scanned + channels * mixer.D) * mixer.act(gate)
        outputs = _residual(inputs) + mixer.out_proj(scanned.to(gate.dtype))
        return outputs, {"convolution": convolution, "state_space": state_space}


def selective_scan(
    channels: Float[Tensor, "lane time channel"],
    time_step: Float[Tensor, "lane time channel"],
    decay_rates: Float[Tensor, "channel state"],
    input_weights: Float[Tensor, "lane time state"],
    output_weights: Float[Tensor, "lane time state"],
    state: Float[Tensor, "lane channel state"],
) -> tuple[Float[Tensor, "lane time channel"], Float[Tensor, "lane channel state"]]:
    """Runs the recurrence of Mamba from a given state: h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t.

    Args:
        channels: x.
        time_step: dt, positive.
        decay_rates: A, negative.
        input_weights: B.
        output_weights: C.
        state: h before the first time step.

    Returns:
        y, and h after the last time step, both in the dtype of `state`.
    """
    decays = torch.exp(time_step[..., None] * decay_rates)
    driven = (time_step * channels)[..., None] * input_weights[:, :, None].to(state.dtype)
    states = []
    for decay, addend in zip(decays.unbind(1), driven.unbind(1), strict=True):
        state = torch.addcmul(addend, decay, state)
        states.append(state)
    outputs = torch.stack(states, 1) @ output_weights[..., None].to(state.dtype)
    return outputs[..., 0], state


class Mamba2Blocks(BlockKind):
    """Mamba2 (Dao & Gu 2024), with the library's scan in chunks (that of `mamba_ssm` on a GPU, if it is installed)."""

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        mixer = block.mixer
        sizes = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
        return {
            "convolution": _convolution_state(mixer.conv1d, num_lanes),
            "state_space": _accumulator(mixer.A_log, num_lanes, *sizes),
        }

    def run(self, block: Any, inputs: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        mixer, (num_lanes, num_steps) = block.mixer, inputs.shape[:2]
        projected = mixer.in_proj(_normalized(block, inputs))
        gate, mixed, time_step = projected.split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], -1)
        mixed, convolution = _convolve(mixer, mixed, state["convolution"])
        width = mixer.n_groups * mixer.ssm_state_size
        channels, *weights = mixed.split([mixer.intermediate_size, width, width], -1)
        input_weights, output_weights = (
            part.reshape(num_lanes, num_steps, mixer.n_groups, mixer.ssm_state_size) for part in weights
        )
        scanned, state_space = _module_of(mixer).mamba2_chunk_scan(
            channels.reshape(num_lanes, num_steps, mixer.num_heads, mixer.head_dim),
            time_step,
            -torch.exp(mixer.A_log.float()),
            input_weights,
            output_weights,
            chunk_size=min(mixer.chunk_size, num_steps),  # a shorter window would be padded
            D=mixer.D,
            dt_bias=mixer.dt_bias,
            initial_states=state["state_space"],
            dt_softplus=True,
            dt_limit=tuple(mixer.time_step_limit),
            return_final_states=True,
        )
        scanned = mixer.norm(scanned.reshape(num_lanes, num_steps, -1), gate)
        outputs = _residual(inputs) + mixer.out_proj(scanned.to(gate.dtype))
        return outputs, {"convolution": convolution, "state_space": state_space}


class RWKVBlocks(BlockKind):
    """RWKV-4 (Peng et al. 2023)."""

    blocks, norm = "blocks", "ln_out"
    # In the order in which the library's blocks expect them.
    names = ("feed_forward_input", "attention_input", "numerator", "denominator", "maximum")

    def check(self, settings: dict[str, Any]) -> None:
        if settings["num_hidden_layers"] < 2:
            raise InputError(
                f"num_layers={settings['num_hidden_layers']}: RWKV needs 2 or more, since transformers divides by one "
                "less when it draws the weights"
            )

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        before = block.ln1.weight.new_zeros(num_lanes, *block.ln1.normalized_shape)
        sums = _accumulator(block.attention.time_decay, num_lanes, block.attention.attention_hidden_size)
        return dict(zip(self.names, [before, before, sums, sums, sums - 1e30], strict=True))

    def run(self, block: Any, inputs: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        if inputs.is_cuda and getattr(_module_of(block), "rwkv_cuda_kernel", None) is not None:
            raise InputError(
                "model_type='rwkv' with the CUDA kernel of transformers: it returns no gradient for its initial state "
                "(transformers#22797); uninstall ninja or kernels"
            )
        slots = [_Slot(state[name]) for name in self.names]
        if inputs.shape[1] == 1:  # the library adds the last inputs without a time axis: lanes would mix
            slots[0].value, slots[1].value = slots[0].value[:, None], slots[1].value[:, None]
        outputs, _, _ = block(inputs, state=slots, use_cache=True)
        return outputs, {name: slot.value for name, slot in zip(self.names, slots, strict=True)}


class _Slot:
    """Stands in for one tensor of an RWKV state, of which a block reads and assigns its layer: nothing is in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __getitem__(self, index: Any) -> Tensor:
        return self.value

    def __setitem__(self, index: Any, value: Tensor) -> None:
        self.value = value


class XLSTMBlocks(BlockKind):
    """XLSTM: the mLSTM blocks of xLSTM-7B (Beck et al. 2025)."""

    blocks, norm = "blocks", "out_norm"

    def check(self, settings: dict[str, Any]) -> None:
        if settings.get("mode", "inference") != "inference":
            raise InputError(
                f"config.mode={settings['mode']!r}: must be 'inference', the only one that takes windows of any length "
                "and returns the state (transformers#47046)"
            )

    def prepare(self, block: Any) -> None:
        block.mlstm_layer.mlstm_backend = _InStateDtype(block.mlstm_layer.mlstm_backend)

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        layer = block.mlstm_layer
        heads = layer.config.num_heads
        keys, values = layer.qk_dim // heads, layer.v_dim // heads
        sizes = {"matrix": (heads, keys, values), "normalizer": (heads, keys), "maximum": (heads, 1)}
        return {name: _accumulator(layer.out_proj.weight, num_lanes, *size) for name, size in sizes.items()}

    def run(self, block: Any, inputs: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        outputs, after = block(inputs, tuple(state.values()))
        return outputs, dict(zip(state, after, strict=True))


class _InStateDtype(nn.Module):
    """Runs the recurrence of xLSTM in the dtype of its state, since the library's fails where the two differ."""

    def __init__(self, recurrence: nn.Module) -> None:
        super().__init__()
        self.recurrence = recurrence

    def forward(self, **tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        given, state = tensors["query"].dtype, tensors["c_initial"]
        with torch.autocast(state.device.type, enabled=False):
            outputs, after = self.recurrence(**{name: tensor.to(state.dtype) for name, tensor in tensors.items()})
        return outputs.to(given), after


BLOCK_KINDS: dict[str, BlockKind] = {
    "mamba": MambaBlocks(),
    "falcon_mamba": MambaBlocks(),
    "mamba2": Mamba2Blocks(),
    "rwkv": RWKVBlocks(),
    "xlstm": XLSTMBlocks(),
}

_ATTENTION = "its attention layers keep keys and values of all time steps: the state would grow without bound"
REFUSED: dict[str, str] = {
    "recurrent_gemma": "transformers keeps its state in the modules and starts the convolution again in every call of "
    "more than one time step (transformers#42627 and the code of 5.23)",
    **dict.fromkeys(
        ("bamba", "falcon_h1", "granitemoehybrid", "jamba", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_next",
         "zamba", "zamba2"),
        _ATTENTION,
    ),  # fmt: skip
}
"""Model types that cannot be carried, and why."""


def _module_of(block: nn.Module) -> Any:
    return sys.modules[type(block).__module__]


def _convolution_state(convolution: nn.Conv1d, num_lanes: int) -> Tensor:
    return convolution.weight.new_zeros(num_lanes, convolution.in_channels, convolution.kernel_size[0] - 1)


def _accumulator(weight: Tensor, *sizes: int) -> Tensor:
    """Returns zeros on the weight's device; sums over many time steps need float32 or more."""
    return weight.new_zeros(sizes, dtype=torch.promote_types(weight.dtype, torch.float32))


def _normalized(block: Any, inputs: Tensor) -> Tensor:
    return block.norm(inputs.to(block.norm.weight.dtype))


def _residual(inputs: Tensor) -> Tensor:
    """Returns the inputs in float32 or more, as `residual_in_fp32` does, which is the default of these models."""
    return inputs.to(torch.promote_types(inputs.dtype, torch.float32))


def _convolve(
    mixer: Any, channels: Float[Tensor, "lane time channel"], before: Float[Tensor, "lane channel past"]
) -> tuple[Float[Tensor, "lane time channel"], Float[Tensor, "lane channel past"]]:
    """Applies the causal convolution and its activation function, with the time steps before the window."""
    weight, joined = mixer.conv1d.weight, torch.cat([before, channels.transpose(1, 2).to(before.dtype)], -1)
    mixed = nn.functional.conv1d(joined, weight, mixer.conv1d.bias, groups=joined.shape[1])
    return mixer.act(mixed).transpose(1, 2), joined[..., joined.shape[-1] - before.shape[-1] :]
