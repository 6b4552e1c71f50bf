"""Turns an error of the parser into one sentence: the option, its value, the rule, and a suggestion."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from shlex import quote
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentParser

from lit_tbptt.cli.class_errors import reasons_in
from lit_tbptt.cli.command_line import option, option_values
from lit_tbptt.cli.similar_options import named_elsewhere, similar_option

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    **dict.fromkeys(("list", "Sequence", "Iterable"), "a list"),
}
_EXAMPLE = "{class_path: LSTM, init_args: {hidden_size: 12}}"
_NO_CLASS = f"a class is given by its name, or by {_EXAMPLE}, without other keys beside these two"


def explain(message: str, parser: ArgumentParser, args: Sequence[str]) -> str:
    """Returns the sentence for an error of the parser.

    Args:
        message: The message of the parser.
        parser: The parser of the subcommand.
        args: The command line.
    """
    key = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        name = found[1].split("=")[0]
        if not name.startswith("-"):
            every = {each for action in parser._actions for each in action.option_strings}
            meant = f"; did you mean --{found[1]}?" if f"--{name}" in every else ""
            return f"{name!r}: an option begins with --, and its value follows it{meant or _meant_value(name, parser)}"
        return f"{name}: there is no such option{_meant_option(name, parser)}"
    in_a_class = "Problem with given class_path" in message
    if not in_a_class and (found := re.search(r"does not accept option '([^']+)'", message)):
        return f"{_place(found[1], args)}{found[1]}: there is no such option{_meant_option(found[1], parser)}"
    if found := re.search(r"Problems parsing config: (.*)", message, re.DOTALL):
        return f"{_broken_file(args)}{_one_line(found[1])}"
    if found := re.search(r"File does not exist: '([^']+)'", message):
        return f"config={Path(found[1]).name!r}: there is no file {found[1]}"
    if found := re.search(r"invalid choice: '([^']+)' \(choose from (.*)\)", message):
        names = re.findall(r"'(\w+)'", found[2])
        known = f"; there are {', '.join(names)}"
        return f"{found[1]}: there is no such command{_meant(found[1], names) or known}"
    if (found := re.search(r"the following arguments are required: (.+)", message)) and not key:
        options = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
        missing = [options.get(name, name.upper()) for name in found[1].split(". Got")[0].split(", ")]
        choice = " (a path, last, or best)" if "--ckpt_path" in missing else ""
        return f"{', '.join(missing)}: must be given{choice}"
    if "Unexpected config" in message:
        return f"{', '.join(option_values(args, 'config', 'c'))}: not a configuration: it must be settings by name"
    if found := re.search(r"argument (\S+): expected (?:one|at least one) argument", message):
        return f"{found[1]}: its value is missing"
    if found := re.search(r"Unable to load config '([^']*)'", message):
        group = key.split(".")[0]
        meant = _meant_option(f"--{group}", parser)
        return f"{_place(group, args)}{group}={found[1]!r}: this names a group of options, or a file of them{meant}"
    if found := re.search(r"Path is not a file: '([^']+)'", message):
        return f"{key}={Path(found[1]).name!r}: {found[1]} is a folder, not a file"
    if not key:
        return _one_line(message)
    owners = re.findall(r"Problem with given class_path '([^']+)'", message)
    owner = owners[-1] if owners else (re.findall(r"class_path[= ]'([^']+)'", message) or [None])[0]
    if found := re.search(r"[Oo]ption '([^']+)' is not accepted", message):
        if found[1] in ("class_path", "init_args"):
            return f"{_place(key, args)}{key}: beside class_path there can be init_args only; put its arguments there"
        names = _arguments(owner) if owner else []
        hint = _meant_argument(found[1], key, names) or (f"; it has {', '.join(names)}" if names else "")
        classes = [] if any(arg.split("=")[0] == f"--{key}" for arg in args) else class_names(parser, key)
        if classes and not hint:
            hint = f"; choose a class with --{key}: {', '.join(classes)}"
        return f"{_place(key, args)}{key}.{found[1]}: {owner or key} has no such argument{hint}"
    if found := re.search(r"the following arguments are required: (.+)", message):
        needed = found[1].split(". Got")[0]
        return f"{key}: {owner if owner else 'the class'} needs {needed}; give --{key}.{needed.split(',')[0]}"
    if "Not a valid subclass of" in message or re.search(r"Group '\w+' does not accept option", message):
        return f"{_place(key, args)}{key}: {_NO_CLASS}"
    if re.search(r"'\w+' object has no attribute 'keys'", message):
        return f"{_place(key, args)}{key}: init_args must be arguments by name, as in {_EXAMPLE}"
    value = re.search(r"(?:Got|Given) value: (?!Namespace|NestedArg)(.*?)(?:\. Got value|$)", message, re.MULTILINE)
    value = value or re.search(r"val='([^']*)'", message)
    given = f"{key}={value[1].splitlines()[0]!r}" if value and value[1] else key
    if found := re.search(r"Expected an import path corresponding to a type\[([\w.]+)\]", message):
        return f"{_place(key, args)}{given}: must be a class of the type {found[1].rpartition('.')[2]}"
    if "Expected an instantiatable class" in message:
        return f"{_place(key, args)}{_abstract(key, message, parser)}"
    expected = list(dict.fromkeys(_expected(_innermost(message))))
    numbers = {"a whole number", "a number", "true or false"}.intersection(expected)
    names = class_names(parser, key.split(".init_args")[0])
    takes_a_class = not numbers or (names and ".init_args" not in key)
    if (found := re.search(r"dot import path string: (\S+)", message)) and takes_a_class:
        names = names or class_names(parser, key.rpartition(".")[0])  # for the argument of a class of the same kind
        known = f"; there are {', '.join(names)}" if 0 < len(names) < 40 else ""
        return (
            f"{_place(key, args)}{key}={found[1]!r}: no such class{_meant(found[1], names) or known}; name one of your "
            "own with its module, my_module.MyClass"
        )
    if found := re.search(r"module '(\S+)' has no attribute '(\S+)'|No module named '(\S+)'", message):
        here = {} if found[3] else vars(sys.modules.get(found[1], sys))
        meant = _meant(str(found[2]), [name for name, value in here.items() if isinstance(value, type)])
        meant = meant.replace("mean ", f"mean {found[1]}.")
        return f"{_place(key, args)}{given}: {found[0]}{meant}"
    if (reasons := reasons_in(message)) and "import path string" not in reasons and expected == ["null"]:
        return f"{_place(key, args)}{given}: {reasons}"
    if expected:
        return f"{_place(key, args)}{given}: must be {' or '.join(expected)}"
    return f"{_place(key, args)}{_one_line(message)}"


def _expected(message: str) -> Iterator[str]:
    for literal in re.findall(r"Expected a typing\.Literal\[(.*?)\]", message):
        yield from (part.strip(" '\"") for part in literal.split(","))
    for name in re.findall(r"Expected (?:a )?<class '([\w.]+)'>", message):
        last = name.rpartition(".")[2]
        if name != "NoneType":
            yield _TYPES.get(last, f"a {last}")
    if "NoneType" in message:
        yield "null"


def _innermost(message: str) -> str:
    """Returns what a message says about the innermost argument that it names: whether others may be null is not it."""
    lines = message.splitlines()
    depths = [len(line) - len(line.lstrip(" -")) for line in lines]
    keys = [number for number, line in enumerate(lines) if line.lstrip(" -").startswith("Parser key ")]
    if len(keys) < 2:
        return message
    rest = range(keys[-1] + 1, len(lines))
    end = next((number for number in rest if depths[number] <= depths[keys[-1]]), len(lines))
    return "\n".join(lines[keys[-1] : end])


def _abstract(key: str, message: str, parser: ArgumentParser) -> str:
    """Says which methods a class lacks that was named."""
    values = message.partition("Given value:")[2]
    found = re.search(r"instantiatable class, but (\S+) is abstract", message)
    path = found[1] if found else values.strip()
    name = path.rpartition(".")[2]
    if name not in values:  # it is what the option takes, since a mapping does not name a class
        return f"{key}: {_NO_CLASS}"
    classes = [cls for action in parser._actions if f"{key}.".startswith(f"{action.dest}.") for cls in _classes(action)]
    methods = next(
        (getattr(cls, "__abstractmethods__", ()) for cls in classes if cls.__name__ == name), ["all methods"]
    )
    return f"{key}={path!r}: it does not define {' and '.join(sorted(methods))}; name a class that does"


def _one_line(message: str) -> str:
    return "; ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))


def _meant(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    by_letters = {each.lower(): each for each in names}
    close = get_close_matches(name.lower(), by_letters, n=1, cutoff=cutoff)
    return f"; did you mean {by_letters[close[0]]}?" if close and by_letters[close[0]] != name else ""


def _meant_option(name: str, parser: ArgumentParser) -> str:
    options = [each for action in parser._actions for each in action.option_strings if not each.endswith(".help")]
    similar = similar_option(name, options)
    return f"; did you mean {similar}?" if similar else ""


def _meant_value(value: str, parser: ArgumentParser) -> str:
    """Returns the hint for a value without its option."""
    likely = "--config" if Path(value).suffix in (".yaml", ".yml", ".json") else "--data.path"
    options = {each for action in parser._actions for each in action.option_strings}
    found = next((option for option in (likely, "--prompt") if option in options), None)
    return f"; did you mean {found} {quote(value)}?" if found else ""


def _meant_argument(name: str, key: str, names: Sequence[str]) -> str:
    """Returns the hint for an argument that a class has not: one that is spelt alike, or named so elsewhere."""
    elsewhere = [each.removeprefix(f"{key}.") for each in named_elsewhere(name, [f"{key}.{own}" for own in names])]
    hint = f"; did you mean {elsewhere[0]}?" if elsewhere else ""
    return _meant(name, names, 0.85) or hint or _meant(name, names)


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    cls = getattr(__import__(module, fromlist=[name]), name)
    return [parameter for parameter in signature(cls).parameters if parameter not in ("self", "params", "optimizer")]


def class_names(parser: ArgumentParser, key: str) -> list[str]:
    """Returns the names of the classes that an option takes, as far as they are imported."""
    names: dict[str, None] = {}
    for cls in _classes(next((action for action in parser._actions if action.dest == key), None)):
        base = cls.__module__.startswith("torch.optim") and cls.__name__ in ("Optimizer", "LRScheduler")
        abstract = base or getattr(cls, "__abstractmethods__", None)
        if not abstract and not cls.__name__.startswith("_"):
            names[cls.__name__] = None
    return list(names)


def _classes(action: Any) -> Iterator[type]:
    """Yields the classes that an option takes, as far as they are imported."""
    todo: list[Any] = [getattr(action, "_typehint", None)]
    while todo:
        hint = todo.pop(0)
        if isinstance(hint, type) and hint.__module__ not in ("builtins", "typing"):
            todo += hint.__subclasses__()
            yield hint
        todo += [arg for arg in get_args(hint) if not isinstance(arg, list)]


def _place(key: str, args: Sequence[str]) -> str:
    """Returns the config file and line of an option, if it was not on the command line."""
    if option(args, key) is not None or any(arg.startswith(f"--{key}") for arg in args):
        return ""
    for file in reversed(option_values(args, "config", "c")):
        line = _line_of(yaml.compose(Path(file).read_text()), key.split("."))
        if line is not None:
            return f"{file}, line {line}: "
    return ""


def _line_of(node: Any, parts: list[str]) -> int | None:
    line = None
    for part in parts:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((pair for pair in pairs if pair[0].value == part), None)
        if found is None:
            return line if line is not None and part == parts[-1] else None
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _broken_file(args: Sequence[str]) -> str:
    for file in option_values(args, "config", "c"):
        try:
            yaml.compose(Path(file).read_text())
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
            return f"{file}{line}: not YAML: "
        except OSError:
            continue
    return ""
