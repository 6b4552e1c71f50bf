"""Selects and runs a command. Commands are imported when called, because importing Lightning takes seconds."""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_origin

from lit_tbptt.cli.messages import one_message

# What needs no trainer, by the module under lit_tbptt.cli whose function of the same name is the command.
COMMANDS = {
    "generate": "continue prompts from a checkpoint",
    "score": "nats and bits per byte of text files under a checkpoint's model",
    "plot": "draw the curves of runs and compare them",
    "export": "write a checkpoint's model as a folder: safetensors, config.json, tokenizer, model card",
}
TRAINER_COMMANDS = {
    "fit": "train a language model; continue a run with --ckpt_path last",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
}


def main(args: list[str] | None = None) -> None:
    """Runs the command line for text. Errors that a user can correct are one message and a non-zero exit status."""
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in COMMANDS:
        _run(given[0], given[1:])
    elif not given:
        print(f"error: no command\n\n{overview()}", file=sys.stderr)
        sys.exit(2)
    elif given[0] in ("-h", "--help", "help"):
        with one_message():
            print(overview())
        sys.exit(0)
    elif not given[0].startswith("-") and given[0] not in TRAINER_COMMANDS:
        known = {name: name for name in (*TRAINER_COMMANDS, *COMMANDS)} | {"train": "fit"}
        close = get_close_matches(given[0], known, n=1)
        meant = f"did you mean {known[close[0]]}?" if close else f"there are {', '.join(dict.fromkeys(known.values()))}"
        print(f"error: {given[0]}: there is no such command; {meant}", file=sys.stderr)
        sys.exit(2)
    elif given[0] == "--version":
        from importlib.metadata import version

        print(f"lit_tbptt {version('lit_tbptt')}")
    else:
        from lit_tbptt.cli.process import importing

        with importing():
            from lit_tbptt.cli.text import TextCLI
        TextCLI(given)


def _run(name: str, args: list[str]) -> None:
    """Runs a function as a command; its parameters before `/` are positional, the others are options."""
    try:
        from lit_tbptt.cli.process import importing, set_up_process, set_up_torch

        set_up_process()
        with one_message():
            with importing():
                command = getattr(import_module(f"lit_tbptt.cli.{name}"), name)
            if "torch" in sys.modules:  # plot does without
                set_up_torch()
            positional, options = _parsed(command, f"{program()} {name}", args)
            command(*positional, **options)
    except KeyboardInterrupt:  # while torch was imported
        sys.exit(130)


def _parsed(command: Callable[..., None], prog: str, args: list[str]) -> tuple[list[Any], dict[str, Any]]:
    import docstring_parser
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_tbptt.cli.command_line import option, set_option
    from lit_tbptt.cli.parser_errors import explain
    from lit_tbptt.errors import InputError

    described = docstring_parser.parse(command.__doc__ or "")
    parser = ArgumentParser(prog=prog, description=described.short_description, exit_on_error=False, allow_abbrev=False)
    positional = [each for each in signature(command).parameters.values() if each.kind is each.POSITIONAL_ONLY]
    helps = {each.arg_name: each.description for each in described.params}
    for each in positional:
        many = get_origin(each.annotation) is list
        parser.add_argument(each.name, help=helps[each.name], nargs="+" if many else None)
    parser.add_function_arguments(command, skip={each.name for each in positional}, as_positional=False, as_group=False)
    if core := option(args, "core"):  # as --model.core takes it
        from lit_tbptt import cores

        args = set_option(args, "core", f"lit_tbptt.{core}" if core in cores.__all__ else core)
    try:
        parsed = parser.instantiate_classes(parser.parse_args(args)).as_dict()
    except ArgumentError as error:
        raise InputError(explain(str(error), parser, args)) from error
    return [parsed.pop(each.name) for each in positional], parsed


def program() -> str:
    """Returns the command that the user typed to start this process."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return f"python -m {script.parent.name}"
    return f"python {sys.argv[0]}" if script.suffix == ".py" else script.name


def overview() -> str:
    """Returns the list of commands, for --help."""
    commands = {**TRAINER_COMMANDS, **COMMANDS}
    width = max(map(len, commands))
    lines = [
        f"usage: {program()} COMMAND [options]",
        "",
        "Train and use a stateful language model by truncated backpropagation through time.",
        "",
        *(f"  {name:{width}}  {purpose}" for name, purpose in commands.items()),
        "",
        f"The options of a command: {program()} COMMAND --help",
    ]
    return "\n".join(lines)
