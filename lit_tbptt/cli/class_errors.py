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
    option = next(_places(settings, given[1], ""), given[1])
    argument = re.match(r"\w+=", reasons) is not None
    return f"{option}.{reasons}" if argument else f"{option}={given[1].rpartition('.')[2]}: {reasons}"


def reasons_in(message: str) -> str:
    """Extracts why a class was refused from the parser's message about each type it tried."""
    errors = message.partition("Errors:")[2].partition("Given value type")[0]
    said = [re.sub(r"Problem with given class_path '[^']+':\s*", "", line.strip(" -")) for line in errors.splitlines()]
    return "; ".join(line for line in said if line and not line.startswith("Expected a"))


def _places(settings: Any, class_path: str, key: str) -> Iterator[str]:
    """Yields the options whose value is of a class."""
    if isinstance(settings, Mapping):
        if settings.get("class_path") == class_path:
            yield key
        for name, value in settings.items():
            yield from _places(value, class_path, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list):
        for value in settings:
            yield from _places(value, class_path, key)
