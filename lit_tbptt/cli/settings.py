"""Settings that a checkpoint brings, and how those of a run differ from them."""

import enum
from collections.abc import Iterator, Mapping, Set
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint, run_state

# Modules whose classes a checkpoint may name. Only numbers and plain words reach them, nothing that could be imported.
_KNOWN = ("torch.optim.", "lit_tbptt.", "lightning.pytorch.cli.ReduceLROnPlateau")
_OBJECTS = ("logger", "callbacks", "plugins", "strategy", "profiler")


def checkpoint_settings(
    checkpoint: Checkpoint, everything: bool, named: Set[str], options: Mapping[str, bool]
) -> dict[str, Any]:
    """Returns the settings a checkpoint was made with, by their names on the command line.

    Args:
        checkpoint: The checkpoint.
        everything: Whether the run is to be continued. Otherwise model and data are enough.
        named: The words that the user wrote: a foreign class must be named there to be imported.
        options: What `class_options` returns.

    Raises:
        InputError: It is no checkpoint of this package, or names a class that is not imported because a file says so.
    """
    sections = run_state(checkpoint).get("settings")
    if sections is None:  # made from Python
        data = checkpoint.get("datamodule_hyper_parameters") or {}
        sections = {"model": checkpoint.get("hyper_parameters") or {}, "data": data}
    taken = ("model", "data", "optimizer", "lr_scheduler", "seed_everything", "checkpoint", "trainer")
    settings = {}
    for section in taken if everything else taken[:2]:
        values = sections.get(section)
        if section not in ("model", "data", "checkpoint", "trainer"):
            settings[section] = values
        elif isinstance(values, Mapping):
            # Callbacks, loggers and plugins are objects: they come from the configuration file, each time.
            settings |= {
                f"{section}.{key}": value
                for key, value in values.items()
                if section != "trainer" or not _names_code(key, value)
            }
    settings = {name: value for name, value in settings.items() if name in options}
    for name, value in settings.items():
        _check_classes(name, value, options[name], named)
    return settings


def class_options(parser: ArgumentParser) -> dict[str, bool]:
    """Returns the options of a parser, and for each whether its value may name a class, which is then imported."""
    return {action.dest: not _is_plain(getattr(action, "_typehint", None)) for action in parser._actions}


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) is Literal or hint in (None, Any, ..., NoneType, str, int, float, bool):
        return True
    if isinstance(hint, type) and get_origin(hint) is None:
        return issubclass(hint, enum.Enum) or hint in (list, dict, tuple, set)
    origin = get_origin(hint)
    known = origin in (list, dict, tuple, set) or "Union" in getattr(origin, "__name__", str(origin))
    return known and all(map(_is_plain, get_args(hint)))


def _names_code(key: str, value: Any) -> bool:
    return isinstance(value, (dict, list)) or key in _OBJECTS or (isinstance(value, str) and "." in value)


def _check_classes(name: str, value: Any, may_be_class: bool, named: Set[str]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        _check_class(name, value, named)
    elif isinstance(value, (Mapping, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            _check_classes(name, part, may_be_class, named)
    elif may_be_class and isinstance(value, str) and "." in value:
        raise InputError(f"the checkpoint has {name}={value}, which is no class with its arguments")


def _check_class(name: str, entry: Mapping[str, Any], named: Set[str]) -> None:
    path, init_args = str(entry["class_path"]), dict(entry.get("init_args") or {})
    plain = not any(
        isinstance(value, dict) or (isinstance(value, str) and "." in value) for value in init_args.values()
    )
    if not (path.startswith(_KNOWN) and plain) and path not in named:
        raise InputError(
            f"the checkpoint has {name}={path} with {init_args}, which is not imported because a file says so; if you "
            f"trust it, name it: --{name} {path}"
        )


def foreign_classes(settings: Mapping[str, Any]) -> str:
    """Returns the options that name the classes of a run's model which a checkpoint alone may not bring."""
    model = settings.get("model") or {}
    paths = {
        key: value["class_path"] for key, value in model.items() if isinstance(value, dict) and "class_path" in value
    }
    return "".join(f" --model.{key} {path}" for key, path in paths.items() if not path.startswith(_KNOWN))


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says what is set otherwise now than in a checkpoint, a line a setting.

    Args:
        saved: What `checkpoint_settings` returned.
        now: The settings of this run by section.
    """
    before, current = dict(_flat(saved)), dict(_flat(now))
    differ = [name for name, value in before.items() if name in current and current[name] != value]
    lines = [f"{name}: {before[name]} in the checkpoint, {current[name]} now" for name in differ]
    if "trainer.max_steps" in differ and current.get("lr_scheduler.init_args.num_steps", 0) is None:
        lines.append("lr_scheduler: it ends at trainer.max_steps, so the learning rates to come change as well")
    return lines


def changed_options(key: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the optimizer or the schedule that a resumed run changes.

    Raises:
        InputError: It would change the class itself.
    """
    before, current = saved.get(key) or {}, now.get(key) or {}
    if before and before.get("class_path") != current.get("class_path"):
        raise InputError(
            f"{key}={current.get('class_path')}, where the run to be resumed has {before.get('class_path')}: a resumed "
            "run cannot change it; keep it, or start a new run from these weights with --init_from"
        )
    old, new = before.get("init_args") or {}, current.get("init_args") or {}
    return {name: value for name, value in new.items() if name in old and old[name] != value}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
