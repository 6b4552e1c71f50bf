"""The blocks of RWKV in `transformers`, run from a given state."""

from typing import Any

from torch import Tensor

from lit_tbptt.cores.hugging_face_blocks import BlockKind, BlockState, module_of
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import accumulator


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
