"""Whether a module must be called as it is: a faster form would pass by what the user has added to it."""

from torch import nn


def is_customized(module: nn.Module) -> bool:
    """Returns whether the user has customized the module: with hooks, a `forward` set on it, or by compiling it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None
