"""Parses the command line. Later sources win: defaults < checkpoint < config file < command line."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lit_tbptt.cli.arguments import add_arguments, describe
from lit_tbptt.cli.class_errors import named_on_the_command_line
from lit_tbptt.cli.command_line import (
    check_lists,
    config_file,
    config_files_first,
    option,
    option_values,
    set_option,
    words,
)
from lit_tbptt.cli.config_files import check_config_files
from lit_tbptt.cli.help import HelpfulParser
from lit_tbptt.cli.parser_errors import explain
from lit_tbptt.cli.runs import runs_dir_of_command_line
from lit_tbptt.cli.settings import changes, checkpoint_settings, class_options, left_out_settings, own_defaults
from lit_tbptt.errors import InputError
from lit_tbptt.files.run_folder import find_checkpoint, searched_runs
from lit_tbptt.files.schema import Checkpoint, run_state

say = rank_zero_only(print)

_SUBCOMMANDS = {
    "fit": "Train; continue a run with --ckpt_path last.",
    "validate": "Evaluate a checkpoint on the validation split.",
    "test": "Evaluate a checkpoint on the test split.",
}


class SettingsCLI(LightningCLI):
    """Parses a command line. Settings of the checkpoint it names apply unless the command line overrides them."""

    defaults: ClassVar[Mapping[str, Any]] = {
        # Evaluation sums in float64, which Apple's GPUs do not support.
        "trainer.accelerator": "auto" if torch.cuda.is_available() else "cpu",
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        self._checkpoint: Checkpoint | None = None  # from --ckpt_path
        self._checkpoint_path = Path()
        self._saved_settings: dict[str, Any] = {}
        self._left_out: dict[str, Any] = {}  # the checkpoint's, which must be given again
        self._now: dict[str, Any] = {}  # the settings of this run, plain
        given = options.get("args")
        self._given: list[str] = list(sys.argv[1:] if given is None else given)
        options.setdefault("parser_class", HelpfulParser)
        described = {name: {"description": text} for name, text in _SUBCOMMANDS.items()}
        about = {"description": "Train and evaluate a task by truncated backpropagation through time."}
        options["parser_kwargs"] = about | described | dict(options.get("parser_kwargs") or {})
        super().__init__(*args, **options)

    def _add_subcommands(self, parser: LightningArgumentParser, **options: Any) -> None:
        super()._add_subcommands(parser, **options)
        for listed in parser._subcommands_action._choices_actions:
            listed.help = _SUBCOMMANDS.get(listed.dest, listed.help)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **options: Any) -> LightningArgumentParser:
        if subcommand not in self._given[:1] and {"-h", "--help", *self.subcommands()}.intersection(self._given[:1]):
            return self.init_parser(**options)  # enough for the list of subcommands, and soon made
        parser = super()._prepare_subcommand_parser(klass, subcommand, **options)
        describe(parser)
        if isinstance(parser, HelpfulParser):
            parser.shorten_help()
        return parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**{"allow_abbrev": False, "exit_on_error": False} | kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_arguments(parser)
        parser.set_defaults({**SettingsCLI.defaults, **self.defaults})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        given = config_files_first(self._given)
        check_config_files(option_values(given, "config", "c"))
        check_lists(given)
        subparser = self._subcommand_parsers.get(given[0]) if given else None
        self._given = given if subparser is None else self._set_defaults(subparser, given)
        try:
            if subparser is not None:
                unprinted = [arg for arg in self._given if not arg.startswith("--print_config")]
                chosen = parser.parse_args(unprinted)
                subparser.set_defaults(own_defaults(subparser, chosen[chosen.subcommand]))
            self.config = parser.parse_args(self._given)
            _leave_proj_size_out(self.config)
        except ArgumentError as error:
            raise InputError(explain(str(error), subparser or parser, given)) from error
        seed = self.config[self.config.subcommand].get("seed_everything")
        if seed is not None and not 0 <= seed < 2**32:
            raise InputError(f"seed_everything={seed}: must be from 0 to {2**32 - 1}")
        asked = self.config[self.config.subcommand].ckpt_path
        if asked is not None and self._checkpoint is None:
            raise InputError(f"ckpt_path={str(asked)!r}: give it on the command line, after the subcommand")
        self._now = yaml.safe_load(parser.dump(self.config, skip_none=False))[self.config.subcommand]
        for line in changes(self._saved_settings | self._left_out, self._now):
            say(line)

    def instantiate_classes(self) -> None:
        try:
            with named_on_the_command_line(self._now, self._now.get("model") or ()):
                super().instantiate_classes()
        except InputError:
            raise
        except (ValueError, ImportError) as error:  # of a constructor that the user gave a value to
            raise InputError(" ".join(str(error).split())) from error

    def _run_subcommand(self, subcommand: str) -> None:
        with named_on_the_command_line(self._now, self._now.get("model") or ()):
            super()._run_subcommand(subcommand)

    def _set_defaults(self, subparser: LightningArgumentParser, given: list[str]) -> list[str]:
        subparser.set_defaults(self.chosen_defaults(given))
        asked, weights = option(given, "ckpt_path"), option(given, "init_from")
        if "-h" in given or any("help" in re.split(r"[-.=]", arg) for arg in given):
            return given
        files = [file for file in option_values(given, "config", "c") if Path(file).is_file()]
        named = words([*given, *(Path(file).read_text() for file in files)])
        classes = class_options(subparser)
        if asked is not None and not asked.startswith("-"):
            runs = searched_runs(config_file(given), runs_dir_of_command_line(given))
            path, self._checkpoint = find_checkpoint(asked, runs, option(given, "run_name"))
            self._checkpoint_path = path
            self.check_checkpoint(self._checkpoint)
            say(f"checkpoint: {path}, optimizer step {self._checkpoint['global_step']}", file=sys.stderr)
            self._saved_settings = checkpoint_settings(self._checkpoint, given[0] == "fit", named, classes)
            subparser.set_defaults(self._saved_settings)
            self._left_out = left_out_settings(self._checkpoint) if given[0] == "fit" else {}
            given = set_option(given, "ckpt_path", str(path))
        elif weights is not None:
            runs = searched_runs(config_file(given), runs_dir_of_command_line(given))
            path, checkpoint = find_checkpoint(weights, runs, None, "init_from")
            saved = checkpoint_settings(checkpoint, False, named, classes)
            network = [f"model.{name}" for name in self._model_class.network_settings]
            subparser.set_defaults({name: saved[name] for name in network if name in saved})
            given = set_option(given, "init_from", str(path))
        return given

    def chosen_defaults(self, given: list[str]) -> dict[str, Any]:
        """Returns further defaults, which a subclass may choose by the given options."""
        return {}

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Raises InputError if the checkpoint of `--ckpt_path` does not belong to this command line."""
        run_state(checkpoint)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: `parse_arguments` has already applied the checkpoint's settings."""


def _leave_proj_size_out(config: Any) -> None:
    """Leaves out `proj_size=0` of torch's RNN and GRU, which the parser adds and they refuse."""
    if isinstance(config, Mapping | Namespace):
        arguments = config.get("init_args") or {}
        if config.get("class_path") in ("torch.nn.RNN", "torch.nn.GRU") and arguments.get("proj_size") == 0:
            arguments.pop("proj_size")
        for part in vars(config).values() if isinstance(config, Namespace) else config.values():
            _leave_proj_size_out(part)
    elif isinstance(config, list):
        for part in config:
            _leave_proj_size_out(part)
