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

    def refusal(self, settings: dict[str, Any]) -> str | None:
        """Returns what is wrong with settings that the library accepts, as an error message."""
        return None

    def completed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns settings with those added whose defaults in the library fit only its own sizes."""
        return settings

    def prepared(self, block: nn.Module) -> nn.Module:
        """Returns a new block, changed where `run` needs it."""
        return block

    @abstractmethod
    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        """Returns the state of a block after a reset."""

    @abstractmethod
    def run(
        self, block: Any, inputs: Float[Tensor, "lane time feature"], state: BlockState
    ) -> tuple[Float[Tensor, "lane time feature"], BlockState]:
        """Runs a block over a window."""


class RWKVBlocks(BlockKind):
    """RWKV-4 (Peng et al. 2023)."""

    blocks, norm = "blocks", "ln_out"
    # In the order in which the library's blocks expect them.
    names = ("feed_forward_input", "attention_input", "numerator", "denominator", "maximum")

    def refusal(self, settings: dict[str, Any]) -> str | None:
        if settings["num_hidden_layers"] >= 2:
            return None
        return (
            f"num_layers={settings['num_hidden_layers']}: RWKV needs 2 or more, since transformers divides by one "
            "less when it draws the weights"
        )

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        before = block.ln1.weight.new_zeros(num_lanes, *block.ln1.normalized_shape)
        sums = accumulator(block.attention.time_decay, num_lanes, block.attention.attention_hidden_size)
        return dict(zip(self.names, [before, before, sums, sums, sums - 1e30], strict=True))

    def run(self, block: Any, inputs: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        if inputs.is_cuda and getattr(module_of(block), "rwkv_cuda_kernel", None) is not None:
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

    def refusal(self, settings: dict[str, Any]) -> str | None:
        if settings.get("mode", "inference") == "inference":
            return None
        return (
            f"config.mode={settings['mode']!r}: must be 'inference', the only one that takes windows of any length "
            "and returns the state (transformers#47046)"
        )

    def prepared(self, block: Any) -> nn.Module:
        block.mlstm_layer.mlstm_backend = _InStateDtype(block.mlstm_layer.mlstm_backend)
        return block

    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        layer = block.mlstm_layer
        heads = layer.config.num_heads
        keys, values = layer.qk_dim // heads, layer.v_dim // heads
        sizes = {"matrix": (heads, keys, values), "normalizer": (heads, keys), "maximum": (heads, 1)}
        return {name: accumulator(layer.out_proj.weight, num_lanes, *size) for name, size in sizes.items()}

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


def module_of(block: nn.Module) -> Any:
    """Returns the module of `transformers` in which the class of a block is defined."""
    return sys.modules[type(block).__module__]


def accumulator(weight: Tensor, *sizes: int) -> Tensor:
    """Returns zeros on the weight's device; sums over many time steps need float32 or more."""
    return weight.new_zeros(sizes, dtype=torch.promote_types(weight.dtype, torch.float32))
