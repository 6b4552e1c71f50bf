"""What a YAML parser would take without a word in a configuration file, and what it cannot read at all."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lit_tbptt.errors import InputError


def check_config_files(files: Iterable[str]) -> None:
    """Makes sure that no setting of a file is lost. What is no YAML or not there is found by the parser.

    Args:
        files: The files.

    Raises:
        InputError: A file is not UTF-8, has a setting twice, of which YAML takes the last one, or one without a name.
    """
    for file in filter(lambda file: Path(file).is_file(), files):
        try:
            root = yaml.compose(Path(file).read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file}: byte {error.start} is not UTF-8 text ({error.reason}); save it as UTF-8"
            ) from error
        except yaml.YAMLError:
            continue
        _check_once(root, file, "")


def _check_once(node: Any, file: str, prefix: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_once(each, file, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, f"{prefix}{key.value}"
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{file}, line {line}: before a colon must stand the name of a setting")
        if key.value in first:
            raise InputError(
                f"{file}, line {line}: {name} stands in line {first[key.value]} already, and only the last one would "
                "count: put both together"
            )
        first[key.value] = line
        _check_once(value, file, f"{name}.")
