"""Puts the names of command-line options into errors raised by classes and the model."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lit_tbptt.errors import InputError


@contextmanager
def named_on_the_command_line(settings: Mapping[str, Any], model_options: Collection[str]) -> Iterator[None]:
    """Puts the name of the option into errors that only contain the name of an argument.

    Args:
        settings: The settings of this run by section.
        model_options: The names of the model's options, without `model.`.

    Raises:
        InputError: An error that a user can correct was raised inside.
    """
    try:
        yield
    except InputError as error:
        name = re.match(r"\w+", str(error))
        prefix = "model." if name and name[0] in model_options and "=" in str(error).split(":")[0] else ""
        raise InputError(f"{prefix}{error}") from error
    except (ValueError, ImportError) as error:
        if "Union subtypes" not in str(error):
            raise
        raise InputError(_of_a_class(str(error), settings)) from error


def _of_a_class(message: str, settings: Mapping[str, Any]) -> str:
    """Extracts the error of a class's constructor from the message of the parser."""
    reasons = reasons_in(message)
    given = re.search(r"Given value: .*?class_path='([^']+)'", message, re.DOTALL)
    if given is None:
        return " ".join(message.split())
    named = re.match(r"(\w+)(?:=(.*?))?: ", f"{reasons} ")
    name, value = named.groups() if named else ("", None)
    option = next((place for place, class_path, _ in _classes(settings, "") if class_path == given[1]), given[1])
    takes_it = value is not None
    for place, _, arguments in _classes(settings, ""):
        # A class is made after those in its arguments, so of several with this value the innermost has refused it.
        within = place == option or place.startswith(f"{option}.")
        if within and name in arguments and value in (None, str(arguments[name]), repr(arguments[name])):
            option, takes_it = place, True
    return f"{option}.{reasons}" if takes_it else f"{option}={given[1].rpartition('.')[2]}: {reasons}"


def reasons_in(message: str) -> str:
    """Extracts why a class was refused from the parser's message about each type it tried."""
    errors = message.partition("Errors:")[2].partition("Given value type")[0]
    said = [re.sub(r"Problem with given class_path '[^']+':\s*", "", line.strip(" -")) for line in errors.splitlines()]
    return "; ".join(line for line in said if line and not line.startswith("Expected a"))


def _classes(settings: Any, key: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields each option whose value is a class, or a list of these, with the class and its arguments."""
    if isinstance(settings, Mapping):
        if "class_path" in settings:
            yield key, settings["class_path"], settings.get("init_args") or {}
        for name, value in settings.items():
            inner = key if name == "init_args" else f"{key}.{name}".removeprefix(".")
            yield from _classes(value, inner)
    elif isinstance(settings, list):
        for value in settings:
            yield from _classes(value, key)
