"""Checks of the arguments of cores, and of arguments that must be cores."""

from typing import Any

from torch import nn

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.contract import check_built
from lit_tbptt.errors import InputError


def check_sizes(**sizes: int | None) -> None:
    """Checks that the given sizes are at least 1.

    Raises:
        InputError: One is not.
    """
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: must be 1 or more")


def check_probabilities(**probabilities: float) -> None:
    """Checks that the given probabilities of dropping something are at least 0 and below 1.

    Raises:
        InputError: One is not.
    """
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            raise InputError(f"{name}={value}: must be at least 0 and below 1")


def check_core(core: Any) -> None:
    """Checks that an argument is a core.

    Raises:
        InputError: It is not, or its constructor left out what every core needs.
    """
    if isinstance(core, RecurrentCore):
        check_built(core)
        return
    if isinstance(core, nn.RNNBase):
        sizes = f"hidden_size={core.hidden_size}, num_layers={core.num_layers}, input_size={core.input_size}"
        name = type(core).__name__
        raise InputError(
            f"core: a torch.nn.{name} has the lane axis of its state second; give lit_tbptt.{name}({sizes}), which "
            "wraps one"
        )
    if isinstance(core, type) and issubclass(core, RecurrentCore):
        raise InputError(f"core={core.__name__}: this is the class; give an object of it, {core.__name__}(...)")
    if isinstance(core, nn.Module):
        name = type(core).__name__
        raise InputError(
            f"core: a {name} is no RecurrentCore; lit_tbptt.TorchCore(module) makes one of a module that is called as "
            "module(inputs, state) and returns (outputs, state)"
        )
    raise InputError(f"core={core!r}: must be a RecurrentCore, such as lit_tbptt.LSTM(hidden_size=256)")
