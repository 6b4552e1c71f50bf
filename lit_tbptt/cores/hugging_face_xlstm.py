"""The blocks of xLSTM in `transformers`, run from a given state."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_tbptt.cores.hugging_face_blocks import BlockKind, BlockState
from lit_tbptt.tbptt.state import accumulator


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
