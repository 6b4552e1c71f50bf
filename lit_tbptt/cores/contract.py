"""Checks of what a core is and returns, so that a mistake in one's own core is named where it is made."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, check_next_state, shape_of, unchanged


def check_built(core: nn.Module) -> None:
    """Checks what the constructor of a core must set.

    Raises:
        InputError: It calls no `super().__init__()`, or sets no size.
    """
    name = type(core).__name__
    if "_parameters" not in vars(core):
        raise InputError(f"core: {name}.__init__ does not call super().__init__(); call it first")
    for size in ("input_size", "output_size"):
        if getattr(core, size, None) is None:
            raise InputError(
                f"core: {name} has no {size}; set self.input_size and self.output_size in its __init__, the features "
                "per time step that forward takes and returns"
            )


def checked_call(core: Any, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """Calls a core, and returns its outputs `[lane, time, output]` and the state after them.

    Raises:
        InputError: It changed the state in place, or returned something else than outputs of `output_size` features in
            the dtype of the inputs and a state like the given one. Under autocast the dtypes may differ.
    """
    with unchanged(core, state):
        returned = core(inputs, state)
    outputs, after = pair_of(core, "forward", returned)
    check_outputs(core, outputs, (*inputs.shape[:2], core.output_size))
    if outputs.dtype != inputs.dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise InputError(
            f"{type(core).__name__} returned outputs of {outputs.dtype} for inputs of {inputs.dtype}: cast them, "
            "outputs.to(inputs.dtype), and make the state in initial_state with the dtype of the weights, "
            "weight.new_zeros(...)"
        )
    check_next_state(core, state, after)
    return outputs, after


def pair_of(core: Any, method: str, returned: Any) -> tuple[Any, State]:
    """Returns what a method of a core returned, outputs and state.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise InputError(
            f"{type(core).__name__}.{method} returned a {type(returned).__name__}"
            + (f" of {len(returned)} values" if isinstance(returned, tuple | list) else "")
            + ": it must return the outputs and the state after them, (outputs, state)"
        )
    return returned[0], returned[1]


def check_outputs(core: Any, outputs: Any, expected: tuple[int, ...]) -> None:
    """Checks the shape of a core's outputs.

    Raises:
        InputError: It is another than expected.
    """
    if not isinstance(outputs, Tensor) or outputs.shape != expected:
        raise InputError(
            f"{type(core).__name__} returned outputs of {shape_of(outputs)}: they must be {expected}, as the inputs "
            f"and output_size={core.output_size} say"
        )
