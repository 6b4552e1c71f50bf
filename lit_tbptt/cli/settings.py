"""Settings below the configuration file: the defaults, and what a checkpoint says; and where checkpoints are."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch

from lit_tbptt import cores
from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import newest_readable, read_checkpoint

# The job that `fit` does without a configuration: about two minutes on two CPU cores.
DEFAULTS = {
    "model.core": {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256}},
    "model.clip_norm": 1.0,
    "optimizer": {"class_path": "torch.optim.AdamW"},
    "lr_scheduler": {"class_path": "lit_tbptt.WarmupCosineLR", "init_args": {"warmup_steps": 100}},
    # Evaluation sums in float64, which Apple's GPUs lack.
    "trainer.accelerator": "auto" if torch.cuda.is_available() else "cpu",
    "trainer.max_steps": 4800,
    "trainer.max_epochs": -1,
    "trainer.val_check_interval": 300,  # batches of 8 windows
    "trainer.check_val_every_n_epoch": None,
    "trainer.log_every_n_steps": 25,
}
# What suits that job alone. Who chooses for himself, by one of these options, gets the class's own defaults.
DEFAULT_JOB = {
    # A byte needs no wide embedding.
    "model.core": (
        {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256, "input_size": 64}},
        ("--config", "-c", "--model.core", "--model.tie_weights", "--data.tokenizer"),
    ),
    "optimizer": (
        {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 4e-3, "betas": [0.9, 0.99], "weight_decay": 0.01, "fused": True},
        },
        ("--config", "-c", "--optimizer=", "--optimizer "),
    ),
}
# Options of the trainer that manual optimization cannot take, and what to use instead.
REFUSED = {
    "gradient_clip_val": "set model.clip_norm",
    "gradient_clip_algorithm": "set model.clip_norm, which clips by norm",
    "accumulate_grad_batches": "use more lanes (data.num_lanes) or longer windows (model.k1)",
}
# Modules whose classes a checkpoint may name. Only numbers and plain words reach them, nothing that could be imported.
_KNOWN = ("torch.optim.", "lit_tbptt.optim.", "lit_tbptt.WarmupCosineLR", "lightning.pytorch.cli.ReduceLROnPlateau")
_OBJECTS = ("logger", "callbacks", "plugins", "strategy", "profiler")
_CORES = tuple(f"lit_tbptt.{name}" for name in cores.__all__ if name != "RecurrentCore")


def option(args: Sequence[str], name: str) -> str | None:
    """Returns the value of `--name` in a command line, the last one as parsers do, or None."""
    found = None
    for place, arg in enumerate(args):
        if arg == f"--{name}" and place + 1 < len(args):
            found = args[place + 1]
        elif arg.startswith(f"--{name}="):
            found = arg.split("=", 1)[1]
    return found


def set_option(args: Sequence[str], name: str, value: str) -> list[str]:
    """Returns the command line with another value of `--name`."""
    places = [place for place, arg in enumerate(args) if arg == f"--{name}"]
    left_out = {*places, *(place + 1 for place in places)}
    kept = [arg for place, arg in enumerate(args) if place not in left_out and not arg.startswith(f"--{name}=")]
    return [*kept, f"--{name}={value}"]


def words(texts: Iterable[str]) -> set[str]:
    """Returns the words of command lines and configuration files."""
    return set(re.split(r"[\s=\"',\[\]{}]+", " ".join(texts)))


def config_name(given: Sequence[str]) -> str:
    """Returns the name of the configuration that a command line gives: its file's, or `default`."""
    file = option(given, "config") or option(given, "c")
    return Path(file).stem if file else "default"


def next_version(runs: Path) -> str:
    """Returns the first name version_<n> that no run has."""
    numbers = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    return f"version_{max((int(number) for number in numbers if number.isdigit()), default=-1) + 1}"


def find_checkpoint(asked: str, runs: Path, run_name: str | None) -> tuple[Path, dict[str, Any]]:
    """Finds and reads the checkpoint that is asked for.

    Args:
        asked: `last`, `best`, or a path.
        runs: The folder of this configuration's runs.
        run_name: The run that `last` and `best` are of. None: the one that was written to last.

    Raises:
        InputError: It is not there or cannot be read.
    """
    if asked not in ("last", "best"):
        return Path(asked), read_checkpoint(asked)
    if run_name is None:
        candidates = [path for path in runs.glob("*") if any(path.glob("checkpoints/*.ckpt"))]
        run = max(candidates, key=_written, default=None)
    else:
        run = runs / run_name
    if run is None or not any(run.glob("checkpoints/*.ckpt")):
        raise InputError(
            f"ckpt_path={asked!r}: no checkpoint in {(run or runs / '*') / 'checkpoints'}; give the same --config (or "
            "--run_name) as the run to continue, or the path of a checkpoint"
        )
    if asked == "best":
        best = run / "checkpoints" / "best.ckpt"
        if not best.exists():
            raise InputError(f"ckpt_path='best': {run} was not validated yet and has no best.ckpt; use last")
        return best, read_checkpoint(best)
    return newest_readable(run / "checkpoints")


def _written(run: Path) -> float:
    return max(path.stat().st_mtime for path in run.glob("checkpoints/*.ckpt"))


def checkpoint_settings(checkpoint: Mapping[str, Any], everything: bool, named: Set[str]) -> dict[str, Any]:
    """Returns the settings a checkpoint was made with, by their names on the command line.

    Args:
        checkpoint: The checkpoint.
        everything: Whether the run is to be continued. Otherwise model and data are enough.
        named: The words that the user wrote: a foreign class must be named there to be imported.

    Raises:
        InputError: It is not a language model's, or names a class that is not imported because a file says so.
    """
    if not {"tbptt", "tokenizer", "hyper_parameters"} <= checkpoint.keys():
        raise InputError("the checkpoint is not one of this package's language models")
    if "settings" in checkpoint:
        sections = checkpoint["settings"]
    else:  # made from Python
        model = dict(checkpoint["hyper_parameters"])
        core = dict(model["core"])
        if "." not in core["class_path"]:
            core["class_path"] = f"lit_tbptt.{core['class_path']}"
        data = checkpoint.get("datamodule_hyper_parameters") or {}
        sections = {"model": model | {"core": core}, "data": {k: v for k, v in data.items() if k != "k1"}}
    found = {f"{section}.{key}": value for section in ("model", "data") for key, value in sections[section].items()}
    if everything:
        found |= {key: sections[key] for key in ("optimizer", "lr_scheduler", "seed_everything") if key in sections}
        found |= {f"checkpoint.{key}": value for key, value in sections.get("checkpoint", {}).items()}
        # Callbacks, loggers and plugins are objects: they come from the configuration file, each time.
        found |= {
            f"trainer.{key}": value for key, value in sections.get("trainer", {}).items() if not _names_code(key, value)
        }
    for key in ("model.core", "optimizer", "lr_scheduler"):
        if found.get(key) is not None:
            _check_class(key, found[key], named)
    return found


def _names_code(key: str, value: Any) -> bool:
    return isinstance(value, (dict, list)) or key in _OBJECTS or (isinstance(value, str) and "." in value)


def _check_class(key: str, entry: Any, named: Set[str]) -> None:
    path = entry.get("class_path") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise InputError(f"the checkpoint has {key}={entry}, which is no class with its arguments")
    trusted = path in _CORES if key == "model.core" else path.startswith(_KNOWN)
    plain = all(
        not isinstance(value, dict) and "." not in str(value if isinstance(value, str) else "")
        for value in (entry.get("init_args") or {}).values()
    )
    if not (trusted and plain) and path not in named:
        raise InputError(
            f"the checkpoint has {key}={path} with {dict(entry.get('init_args') or {})}, which is not imported because "
            f"a file says so; if you trust it, name it: --{key} {path}"
        )


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
