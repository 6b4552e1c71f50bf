"""Checks that overrides of hooks call `super()` where the training loop does part of its work.

This cannot be determined from the code of an override: it may call `super()` through a helper, or call something else
of the same name. So overrides are checked when they run.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_tbptt.errors import InputError

Class = TypeVar("Class", bound=type)

_STEPS = ("training_step", "validation_step", "test_step", "configure_model")
# Lightning calls them under automatic optimization only.
_NEVER_CALLED = {
    "configure_gradient_clipping": "set clip_norm, or change the gradients in on_before_optimizer_step",
    "optimizer_step": "change the gradients in on_before_optimizer_step, and the learning rate by a schedule",
    "optimizer_zero_grad": "use on_before_zero_grad",
}


def loop_hooks(owner: Class) -> Class:
    """Marks the hooks of a class as parts of the loop."""
    for name, value in list(vars(owner).items()):
        if name.startswith("on_") or name in _STEPS:
            setattr(owner, name, _noting(value))
    return owner


def _noting(hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def noted(module: LightningModule, *args: Any, **options: Any) -> Any:
        watched = vars(module).get("_watched")
        if watched is not None:
            watched.add(noted)
        return hook(module, *args, **options)

    noted.is_loop_hook = True  # type: ignore[attr-defined]
    return noted


def watch_overrides(module: LightningModule) -> None:
    """Makes overridden hooks fail if they do not call `super()`; `leave_overrides` undoes this.

    Raises:
        InputError: A method is overridden that is never called.
    """
    for name, instead in _NEVER_CALLED.items():
        if is_overridden(name, module):
            raise InputError(
                f"{type(module).__name__}.{name} would never be called, since the loop steps the optimizer itself "
                f"(manual optimization): {instead}"
            )
    leave_overrides(module)
    classes = type(module).__mro__
    for name in {name for each in classes for name, value in vars(each).items() if _is_loop_hook(value)}:
        owners = [each for each in classes if name in vars(each)]
        parts = {vars(each)[name] for each in owners if _is_loop_hook(vars(each)[name])}
        own = [each.__name__ for each in _before_the_last_part(owners, name)]
        set_here = vars(module).get(name)
        if own or set_here:
            who = [f"the {name} that was set on the module", *own] if set_here else own
            message = (
                f"{' or '.join(who)}: {name} must call super().{name}(...): the training loop does a part of its work "
                "there, and would go on without it"
            )
            setattr(module, name, _watched(module, getattr(module, name), parts, message))
            module._watched_hooks[name] = set_here


def leave_overrides(module: LightningModule) -> None:
    """Undoes `watch_overrides`."""
    for name, set_before in vars(module).get("_watched_hooks", {}).items():
        delattr(module, name)
        if set_before is not None:
            setattr(module, name, set_before)
    module._watched_hooks = {}


def is_watched(module: LightningModule, name: str) -> bool:
    """Returns whether a hook is overridden, and therefore watched."""
    return name in module._watched_hooks


def _is_loop_hook(value: Any) -> bool:
    return getattr(value, "is_loop_hook", False)


def _before_the_last_part(owners: list[type], name: str) -> list[type]:
    """Returns the classes whose hook is not part of the loop and must call one that is."""
    last = max(place for place, each in enumerate(owners) if _is_loop_hook(vars(each)[name]))
    return [each for each in owners[:last] if not _is_loop_hook(vars(each)[name])]


def _watched(module: LightningModule, hook: Callable[..., Any], parts: set[Any], message: str) -> Callable[..., Any]:
    @functools.wraps(hook)
    def checked(*args: Any, **options: Any) -> Any:
        outer, done = vars(module).get("_watched"), set[Any]()  # a hook may be called inside another one
        module._watched = done
        try:
            returned = hook(*args, **options)
        finally:
            module._watched = outer
        if not parts <= done:
            raise InputError(message)
        return returned

    return checked
