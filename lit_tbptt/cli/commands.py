"""Which command is run. Each is imported when it is called: Lightning alone takes seconds."""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

# What needs no trainer, by the module under lit_tbptt.cli whose function of the same name is the command.
COMMANDS = {
    "generate": "continue prompts from a checkpoint",
}
TRAINER_COMMANDS = {
    "fit": "train a language model; continue a run with --ckpt_path last",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
}


def main(args: list[str] | None = None) -> None:
    """Runs the command line for text; what a user can correct is one message and a non-zero exit status."""
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in COMMANDS:
        _run(given[0], given[1:])
    elif not given:
        sys.exit(f"error: no command\n\n{overview()}")
    elif given[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    elif given[0] == "--version":
        print(f"lit_tbptt {version('lit_tbptt')}")
    else:
        from lit_tbptt.cli.text import TextCLI

        TextCLI(given)


def _run(name: str, args: list[str]) -> None:
    from jsonargparse import auto_cli

    from lit_tbptt.cli.messages import one_message
    from lit_tbptt.cli.process import set_up_process

    command = getattr(import_module(f"lit_tbptt.cli.{name}"), name)
    set_up_process()
    with one_message():
        auto_cli(command, args=args, prog=f"{program()} {name}", as_positional=False)


def program() -> str:
    """Returns what the user typed to start this process."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return f"python -m {script.parent.name}"
    return f"python {sys.argv[0]}" if script.suffix == ".py" else script.name


def overview() -> str:
    """Returns what there is to be called."""
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
