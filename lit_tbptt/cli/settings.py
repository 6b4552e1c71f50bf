"""The settings stored in a checkpoint, and how the settings of a run differ from them."""

import enum
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Set
from inspect import signature
from shlex import quote
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
from jsonargparse import ArgumentParser, Namespace

import lit_tbptt
from lit_tbptt.cores.torch_core import TORCH_MODULES
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint, run_state

# Sections of a checkpoint's settings that contain options, and options outside of sections.
_SECTIONS, _OPTIONS = ("model", "data", "checkpoint", "trainer"), ("optimizer", "lr_scheduler", "seed_everything")
# Options of the trainer that are never taken from a checkpoint, besides lists and dictionaries.
_OBJECTS = ("callbacks", "logger", "plugins", "profiler", "strategy")
_PLAIN = (None, Any, ..., NoneType, str, int, float, bool, os.PathLike, list, dict, tuple, set)


def checkpoint_settings(
    checkpoint: Checkpoint, everything: bool, named: Set[str], options: Mapping[str, bool]
) -> dict[str, Any]:
    """Returns the settings that a checkpoint was made with, by their names on the command line.

    Args:
        checkpoint: The checkpoint.
        everything: Whether to include all settings, to resume the run, or only those of model and data.
        named: The words that the user wrote. A class from elsewhere is imported only if it is among them.
        options: The result of `class_options`.

    Raises:
        InputError: The checkpoint is not from this package, or names a foreign class that the user has not named.
    """
    sections = run_state(checkpoint).get("settings")
    if sections is None:  # made from Python
        data = checkpoint.get("datamodule_hyper_parameters") or {}
        sections = {"model": checkpoint.get("hyper_parameters") or {}, "data": data}
    model, built = sections.get("model") or {}, (checkpoint.get("hyper_parameters") or {}).get("core")
    given = model.get("core")
    if isinstance(built, dict) and isinstance(given, dict) and given.get("class_path") == built.get("class_path"):
        # A core may describe itself by other arguments than it was given: HuggingFaceCore without its folder. The text
        # that TorchCore has for a module is none.
        asked = given.get("init_args") or {}
        texts = {k: v for k, v in asked.items() if isinstance(v, dict) and isinstance(built["init_args"].get(k), str)}
        sections = {**sections, "model": {**model, "core": {**built, "init_args": {**built["init_args"], **texts}}}}
    settings = {
        f"{section}.{key}": value
        for section in (_SECTIONS if everything else _SECTIONS[:2])
        for key, value in (sections.get(section) or {}).items()
        if section != "trainer" or not _is_left_out(key, value)
    }
    if everything:
        settings |= {key: sections[key] for key in _OPTIONS if key in sections}
    settings = {name: value for name, value in settings.items() if name in options}
    kept = {}
    for name, value in settings.items():
        foreign = next(_foreign(name, value, named, options), None)
        if foreign is None:
            kept[name] = value
        elif not name.startswith("trainer.") and f"--{name}" not in named:  # options given now need no check
            where, what = foreign
            raise InputError(
                f"the checkpoint has {name}={value}: {where} is {what!r}, which is not imported just because the "
                f"checkpoint names it; if you trust it, name it: --{where} {quote(what)}"
            )
    return kept


def left_out_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the settings, by name, that `checkpoint_settings` leaves out, and that must be given again.

    Without the callbacks, which the checkpoint itself lists.
    """
    trainer = (run_state(checkpoint).get("settings") or {}).get("trainer") or {}
    left_out = {key: value for key, value in trainer.items() if key != "callbacks" and _is_left_out(key, value)}
    return {f"trainer.{key}": value for key, value in left_out.items()}


def _is_left_out(key: str, value: Any) -> bool:
    return key in _OBJECTS or isinstance(value, dict | list)


def class_options(parser: ArgumentParser) -> dict[str, bool]:
    """Returns for each option of a parser whether its value may name code to import."""
    return {action.dest: not _is_plain(getattr(action, "_typehint", action)) for action in parser._actions}


def own_defaults(parser: ArgumentParser, parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns new defaults that follow from the chosen options, for parsing again.

    When the class of an option changes, jsonargparse keeps those arguments of the default class that the new class also
    has: SGD would get the weight decay of AdamW. And Lightning accepts a fraction as `val_check_interval` only if
    validations are tied to epochs; but counts a number of batches in every epoch then, and never validates if the
    epochs are shorter.
    """
    chosen: dict[str, Any] = {}
    interval = parsed.get("trainer.val_check_interval")
    if isinstance(interval, float):
        chosen["trainer.check_val_every_n_epoch"] = 1
    elif isinstance(interval, int) and interval != parser.get_default("trainer.val_check_interval"):  # a checkpoint's
        chosen["trainer.check_val_every_n_epoch"] = None
    for action in parser._actions:
        default, value = action.default, parsed.get(action.dest)
        if isinstance(default, Mapping | Namespace) and isinstance(value, Mapping | Namespace):
            before, now, given = default.get("class_path"), value.get("class_path"), value.get("init_args") or {}
            if before and now and before != now:
                default = chosen[action.dest] = class_default(now)
            if given.get("foreach") or given.get("differentiable"):  # these exclude fused
                arguments = dict(default.get("init_args") or {}) | {"fused": None}
                chosen[action.dest] = {"class_path": now, "init_args": arguments}
    return chosen


def class_default(class_path: str) -> dict[str, Any]:
    """Returns the default for a class option: the class's own defaults, but optimizers are fused if possible.

    On a CPU a fused step takes a fifth of the time of the other forms, and equals them up to rounding.
    """
    package, _, name = class_path.rpartition(".")
    fuses = package == "torch.optim" and "fused" in signature(getattr(torch.optim, name)).parameters
    return {"class_path": class_path, "init_args": {"fused": True}} if fuses else {"class_path": class_path}


def _is_plain(hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal or hint in _PLAIN:
        return True
    if origin is None:
        return isinstance(hint, type) and issubclass(hint, enum.Enum | os.PathLike)
    container = isinstance(origin, type) and issubclass(origin, Collection)
    union = "Union" in getattr(origin, "__name__", str(origin))
    return (container or union) and all(map(_is_plain, get_args(hint)))


def _foreign(name: str, value: Any, named: Set[str], options: Mapping[str, bool]) -> Iterator[tuple[str, str]]:
    """Yields option and name of everything jsonargparse would import for a value, unless known or named by the user."""
    if isinstance(value, Mapping) and "class_path" in value:
        path = str(value["class_path"])
        if not (_is_known(path) or path in named):
            yield name, path
        for arguments in (value.get("init_args"), value.get("dict_kwargs")):
            for key, part in (arguments or {}).items():
                yield from _foreign(f"{name}.{key}", part, named, {})
    elif isinstance(value, Mapping):
        for key, part in value.items():
            inner = f"{name}.{key}"
            yield from _foreign(inner, part, named, {inner: options.get(inner, options.get(name, True)), **options})
    elif isinstance(value, list | tuple):
        if any(True for part in value for _ in _foreign(name, part, named, options)):
            yield name, json.dumps(value, default=str)  # a list can only be named as a whole
    elif isinstance(value, str) and options.get(name, True) and value not in named and not _is_word(value):
        yield name, value


def _is_word(value: str) -> bool:
    # Such a word, or the name of a metric, can only name a class that is already imported. A file of that name would be
    # read as settings.
    return re.fullmatch(r"[\w/-]*", value) is not None and not os.path.exists(value)


def _is_known(path: str) -> bool:
    package, _, name = path.rpartition(".")
    ours = package == "lit_tbptt" and name in lit_tbptt.__all__
    others = {*TORCH_MODULES, "lightning.pytorch.cli.ReduceLROnPlateau"}
    return ours or path.startswith("torch.optim.") or path in others


def foreign_classes(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns what to give again of a run's settings, by option, since a checkpoint alone imports no such class.

    It is the class, or the whole setting if the class is within it.
    """
    sections = [(key, settings.get(key)) for key in ("optimizer", "lr_scheduler")]
    sections += [
        (f"{section}.{key}", value)
        for section in ("model", "data")
        for key, value in (settings.get(section) or {}).items()
    ]
    found = {name: (list(foreign_paths(value)), value) for name, value in sections}
    return {
        name: paths[0] if isinstance(value, dict) and [value.get("class_path")] == paths else json.dumps(value)
        for name, (paths, value) in found.items()
        if paths
    }


def foreign_paths(value: Any) -> Iterator[str]:
    """Yields the classes in a setting, and in their arguments, that are never imported from a checkpoint alone."""
    if isinstance(value, dict):
        if "class_path" in value and not _is_known(value["class_path"]):
            yield value["class_path"]
        for part in value.values():
            yield from foreign_paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from foreign_paths(part)


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describes the settings that differ from those of a checkpoint, one line each.

    Args:
        saved: The result of `checkpoint_settings`.
        now: The settings of this run by section.
    """
    before, current = dict(_flat(saved)), dict(_flat(now))
    differ = [name for name, value in before.items() if name in current and current[name] != value]
    lines = [f"{name}: {before[name]} in the checkpoint, {current[name]} now" for name in differ]
    ends = {"trainer.max_steps", "trainer.max_epochs"}.intersection(differ)
    if ends and current.get("lr_scheduler.init_args.num_steps", 0) is None:
        lines.append("lr_scheduler: it ends with the fit, so the learning rates to come change as well")
    return lines


def changed_options(key: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the optimizer or schedule that a resumed run changes.

    Raises:
        InputError: The class itself differs.
    """
    before, current = saved.get(key) or {}, now.get(key) or {}
    if key in saved and before.get("class_path") != current.get("class_path"):
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
