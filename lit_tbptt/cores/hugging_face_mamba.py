"""The blocks of Mamba, FalconMamba and Mamba2 in `transformers`, run from a given state."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.hugging_face_blocks import BlockKind, BlockState, module_of
from lit_tbptt.tbptt.state import accumulator


class MambaBlocks(BlockKind):
    """Mamba (Gu & Dao 2023, algorithm 2) and FalconMamba, which also normalizes dt, B and C."""

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        mixer = block.mixer
        return {
            "convolution": _convolution_state(mixer.conv1d, num_lanes),
            "state_space": accumulator(mixer.A_log, num_lanes, *mixer.A_log.shape),
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

    def completed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Adds heads of at most 64 features, and up to 8 groups of heads, if size and number are not given."""
        if {"num_heads", "head_dim"} & set(settings):
            return settings
        width = int(settings.get("expand", 2) * settings["hidden_size"])
        fits = [size for size in range(64, 0, -1) if width % (size * settings.get("n_groups", 1)) == 0]
        if not fits:
            return settings
        num_heads = width // fits[0]
        return {"n_groups": math.gcd(8, num_heads), **settings, "head_dim": fits[0], "num_heads": num_heads}

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        mixer = block.mixer
        sizes = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
        return {
            "convolution": _convolution_state(mixer.conv1d, num_lanes),
            "state_space": accumulator(mixer.A_log, num_lanes, *sizes),
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
        scanned, state_space = module_of(mixer).mamba2_chunk_scan(
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


def _convolution_state(convolution: nn.Conv1d, num_lanes: int) -> Tensor:
    return convolution.weight.new_zeros(num_lanes, convolution.in_channels, convolution.kernel_size[0] - 1)


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
