"""Reads options of a command line before it is parsed, because they determine the defaults."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_tbptt.errors import InputError


def option_values(args: Sequence[str], *names: str) -> list[str]:
    """Returns the values of `--name`, and of `-n` for a name of one letter, in order."""
    flags = [f"-{name}" if len(name) == 1 else f"--{name}" for name in names]
    values = []
    for place, arg in enumerate(args):
        if arg in flags and place + 1 < len(args):
            values.append(args[place + 1])
        elif any(arg.startswith(f"{flag}=") for flag in flags):
            values.append(arg.split("=", 1)[1])
    return values


def option(args: Sequence[str], name: str) -> str | None:
    """Returns the last value of `--name`, like a parser, or None."""
    values = option_values(args, name)
    return values[-1] if values else None


def config_files_first(args: Sequence[str]) -> list[str]:
    """Returns the command line with the config files directly after the subcommand, so that every option counts."""
    files: list[str] = []
    rest: list[str] = []
    for before, arg in pairwise(args):
        named = before in ("--config", "-c") or arg in ("--config", "-c") or arg.startswith(("--config=", "-c="))
        (files if named else rest).append(arg)
    return [*args[:1], *files, *rest]


def config_file(args: Sequence[str]) -> str | None:
    """Returns the last config file given, or None."""
    files = option_values(args, "config", "c")
    return files[-1] if files else None


def given_value(args: Sequence[str], name: str) -> Any:
    """Returns the value of an option given on the command line or in a config file, or None."""
    value = option(args, name)
    for file in reversed(option_values(args, "config", "c")) if value is None else ():
        settings = _settings_of(Path(file)) if Path(file).is_file() else None
        for part in name.split("."):
            settings = settings.get(part) if isinstance(settings, Mapping) else None
        if settings is not None:
            return settings
    return value


def _settings_of(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except yaml.YAMLError:  # the parser says where
        return None


def check_lists(args: Sequence[str]) -> None:
    """Makes sure that no callback and no logger is lost.

    Raises:
        InputError: An option that takes several is given twice, where a parser would take the last.
    """
    for name in ("trainer.callbacks", "trainer.logger"):
        given = option_values(args, name)
        if len(given) > 1:
            raise InputError(
                f"{name}: given twice, and only the last would count; write --{name}+={given[1]} for the second"
            )


def set_option(args: Sequence[str], name: str, value: str) -> list[str]:
    """Returns the command line with a new value of `--name`."""
    places = [place for place, arg in enumerate(args) if arg == f"--{name}"]
    left_out = {*places, *(place + 1 for place in places)}
    kept = [arg for place, arg in enumerate(args) if place not in left_out and not arg.startswith(f"--{name}=")]
    return [*kept, f"--{name}={value}"]


def words(texts: Iterable[str]) -> set[str]:
    """Returns the set of words in command lines and config files."""
    return set(re.split(r"[\s=\"',\[\]{}]+", " ".join(texts)))
