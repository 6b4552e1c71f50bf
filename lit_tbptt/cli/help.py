"""The help of a subcommand: the options that are usually set, a line each; a group of them or all in full on request.

Everything shown is read from the parser, so that it also fits the options of a user's own task and data.
"""

import json
import re
import shutil
import textwrap
from argparse import SUPPRESS, Action, _HelpAction
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from shlex import quote
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse._actions import _ActionConfigLoad
from lightning.pytorch.cli import LightningArgumentParser

from lit_tbptt.cli.commands import program
from lit_tbptt.cli.parser_errors import class_names

# Of Lightning's trainer, what runs are usually started with.
TRAINER = (
    *("max_steps", "max_epochs", "max_time", "accelerator", "devices", "strategy", "precision", "val_check_interval"),
    *("check_val_every_n_epoch", "limit_val_batches", "limit_test_batches", "log_every_n_steps", "callbacks", "logger"),
    "fast_dev_run",
)
_TITLES = {"run": "The run", "optimizer": "Optimizer and schedule", "trainer": "Lightning's trainer"}
_ORDER = ("run", "data", "model", "optimizer")  # then the others, and the trainer last
# An evaluation takes the rest from the checkpoint.
_OF_AN_EVALUATION = ("run", "data", "trainer")
_OF_A_FIT = ("init_from", "trainer.max_", "trainer.val_check", "trainer.check_val", "trainer.fast_dev", "trainer.log_")
_COLUMN, _MOST_CHOICES = 36, 20
# Options whose default class is shown with its arguments.
_IN_PARTS = ("--model.core", "--optimizer", "--lr_scheduler")
_PLACEHOLDERS = {int: "INT", float: "FLOAT", bool: "true|false", Path: "PATH", str: "TEXT", dict: "DICT", list: "LIST"}


class HelpfulParser(LightningArgumentParser):
    """A parser whose help is short, once `shorten_help` was called."""

    _is_short = False

    def shorten_help(self) -> None:
        """Makes `--help` short, and adds `--<group>.help` and `--help.all` for the rest."""
        groups = dict.fromkeys(_section(action) for action in self._actions if "." in action.dest)
        known = {option for action in self._actions for option in action.option_strings}
        for group in groups:
            if f"--{group}.help" not in known:
                options = f"--{group}.help", f"--help.{group}"
                self.add_argument(*options, action=_FullHelp, help=f"Show the options of {group} in full.")
        self.add_argument("--help.all", action=_FullHelp, help="Show all options in full.")
        self._is_short = True

    def format_help(self, *args: Any) -> str:
        if self._is_short:
            return _short_help(self)
        # Of torch's modules there are hundreds.
        return re.sub(r"known\s+subclasses:([^()]*)", _few_classes, super().format_help(*args))

    def full_help(self, group: str) -> str:
        """Returns the help of a group's options, or of `all`, as argparse writes it."""
        full = copy(self)
        full.usage, full._is_short = _usage(self), False
        if group != "all":
            full._action_groups = _groups(self, group)
        return full.format_help()


class _FullHelp(_HelpAction):
    def __call__(self, parser: Any, *args: Any, **options: Any) -> None:
        group = self.option_strings[0].removeprefix("--").replace("help.all", "all").removesuffix(".help")
        print(parser.full_help(group))
        parser.exit()


def _few_classes(listed: re.Match[str]) -> str:
    number = listed[1].count(",") + 1
    return listed[0] if number <= _MOST_CHOICES else f"{number} known subclasses"


def _usage(parser: ArgumentParser) -> str:
    return f"{program()} {getattr(parser, 'subcommand', '')} [options]"


def _section(action: Action) -> str:
    group, dot, _ = action.dest.partition(".")
    if dot or group in ("data", "model"):
        return group
    return "optimizer" if group in ("optimizer", "lr_scheduler") else "run"


def _short_help(parser: HelpfulParser) -> str:
    evaluates = getattr(parser, "subcommand", "fit") != "fit"
    sections: dict[str, list[Action]] = {}
    for action in parser._actions:
        hidden = evaluates and action.dest.startswith(_OF_A_FIT)
        if _is_option(action) and not hidden:
            sections.setdefault(_section(action), []).append(action)
    if evaluates:
        sections = {name: sections[name] for name in _OF_AN_EVALUATION if name in sections}
    order = [*_ORDER, *(name for name in sections if name not in (*_ORDER, "trainer")), "trainer"]
    sections["trainer"].sort(key=lambda action: TRAINER.index(action.dest.partition(".")[2]))
    lines = [f"usage: {_usage(parser)}", "", parser.description or "", ""]
    lines += ["Each option is shown with its default value, or with the kind of value that it takes.", ""]
    for name in order:
        if name in sections:
            lines.append(f"{_TITLES.get(name) or _title(parser, name)}:")
            lines += [line for action in sections[name] for line in _described(action, parser)] + [""]
    return "\n".join([*lines, *_more(parser, sections), ""])


def _is_option(action: Action) -> bool:
    if isinstance(action, _HelpAction | _ActionConfigLoad):  # the latter is a whole group, read from a file
        return False
    named = any(each.startswith("--") and not each.endswith(".help") for each in action.option_strings)
    if not named or action.dest in ("weights_only", "verbose"):  # which mean nothing here
        return False
    return _section(action) != "trainer" or action.dest.partition(".")[2] in TRAINER


def _title(parser: ArgumentParser, section: str) -> str:
    """Returns what the class that a group of options belongs to says of itself."""
    return next((str(group.title) for group in _groups(parser, section)), section).replace("`", "")


def _groups(parser: ArgumentParser, section: str) -> list[Any]:
    groups = [each for each in parser._action_groups if each is not parser._optionals]  # which holds all
    return [each for each in groups if any(_section(action) == section for action in each._group_actions)]


def _described(action: Action, parser: ArgumentParser) -> Iterator[str]:
    hint = getattr(action, "_typehint", None)
    option = next(each for each in action.option_strings if each.startswith("--"))
    default = action.default.as_dict() if isinstance(action.default, Namespace) else action.default
    is_class, choices = f"{option}.help" in parser._option_string_actions, []
    if _section(action) != "trainer":
        choices = sorted(class_names(parser, action.dest)) if is_class else _literals(hint)
    value = "CLASS" if is_class and default is None else _value(action, default)
    yield from _line(option, value, *_sentences(action), choices=choices)
    if option in _IN_PARTS and isinstance(default, Mapping) and "class_path" in default:
        given = default.get("init_args") or {}
        for argument in _arguments(default["class_path"], given, type(parser)):
            name = f"{option}.{argument.dest}"
            yield from _line(name, _value(argument, given.get(argument.dest, argument.default)), *_sentences(argument))


def _arguments(class_path: str, given: Mapping[str, Any], parser_class: type[ArgumentParser]) -> list[Action]:
    """Returns the arguments of an option's default class; of torch's, those that are given, and the learning rate."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    parameters = signature(cls).parameters.values()
    supplied = {each.name for each in parameters if each.default is Parameter.empty} & set(signature(cls).parameters)
    parser = parser_class()
    parser.add_class_arguments(cls, skip=supplied - set(given), fail_untyped=False)
    usual = {"lr", *given} if module.startswith("torch.") else {each.name for each in parameters}
    return [action for action in parser._actions if _is_option(action) and action.dest in usual]


def _sentences(action: Action) -> tuple[str, str]:
    """Returns the first sentence about an option, and what happens if it is left out."""
    text = " ".join((action.help or "").split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)  # of Sphinx
    text = re.sub(r" *\(default: [^)]*\)", "", text).replace("`", "")
    first, *others = re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text)
    left_out = (other for other in others if other.startswith("Left out:") and action.default is None)
    return first, next(left_out, "")


def _value(action: Action, default: Any) -> str:
    if isinstance(default, Mapping) and "class_path" in default:
        return str(default["class_path"]).rpartition(".")[2]
    if isinstance(default, type):
        return default.__name__
    if default == SUPPRESS:
        return ""
    if default is None or isinstance(action, ActionConfigFile):
        return _placeholder(action)
    if isinstance(default, bool):
        return str(default).lower()
    return quote(json.dumps(default, default=str) if isinstance(default, Mapping | list | tuple) else str(default))


def _placeholder(action: Action) -> str:
    hint = getattr(action, "_typehint", action.type)
    kinds = {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
    literals = _literals(hint)
    if 0 < len(literals) < 5:
        return "|".join(literals)
    known = [name for kind, name in _PLACEHOLDERS.items() if kind in kinds]
    return known[0] if known else action.dest.rpartition(".")[2].upper()


def _literals(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [value for part in get_args(hint) if get_origin(part) is Literal for value in _literals(part)]


def _line(option: str, value: str, first: str, more: str = "", choices: Collection[str] = ()) -> Iterator[str]:
    """Yields what a terminal of 120 columns shows in a line, and a smaller one in two, but all choices."""
    columns = shutil.get_terminal_size(fallback=(120, 24)).columns
    width, num_lines = max(40, columns - _COLUMN), 1 if columns >= 120 else 2
    left = f"  {option} {value}"
    if len(left) >= _COLUMN:
        yield left.rstrip()
        left = ""
    text = f"{first} {more}" if len(textwrap.wrap(f"{first} {more}", width)) <= num_lines else first
    lines = textwrap.wrap(text, width, max_lines=num_lines, placeholder=" ...") or [""]
    if len(choices) <= _MOST_CHOICES and not all(re.search(rf"\b{re.escape(each)}\b", text) for each in choices):
        lines = textwrap.wrap(f"{first} One of {', '.join(choices)}.", width)
    yield f"{left:{_COLUMN}}{lines[0]}".rstrip()
    yield from (" " * _COLUMN + line for line in lines[1:])


def _more(parser: ArgumentParser, sections: Mapping[str, Iterable[Action]]) -> Iterator[str]:
    shown = {action.dest for actions in sections.values() for action in actions}
    helps = [option for action in parser._actions for option in action.option_strings if option.endswith(".help")]
    classes = [f"{option} CLASS" for option in helps if option[2:-5] in shown and not option.startswith("--trainer")]
    groups = [option for option in helps if option[2:-5] in sections and option[2:-5] not in shown]
    yield "More help:"
    for options, text in (
        (groups, "all options of a group, in full"),
        (classes, "the options of a class"),
        (["--help.all"], "everything"),
    ):
        if options:
            yield from _line(", ".join(options), "", text)
