"""LightningCLI with run folders, exact resumes, signals and reports, for any task and any data module."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_tbptt.cli.arguments import add_arguments, check_trainer_options
from lit_tbptt.cli.command_line import config_file, option, option_values, set_option, words
from lit_tbptt.cli.messages import one_message
from lit_tbptt.cli.plot import draw_finished_run
from lit_tbptt.cli.process import set_up_process
from lit_tbptt.cli.reports import result_table
from lit_tbptt.cli.settings import (
    changed_options,
    changes,
    checkpoint_settings,
    class_options,
    foreign_classes,
    own_defaults,
)
from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.files.run_folder import RunFolder, find_checkpoint, next_version, runs_of
from lit_tbptt.files.schema import Checkpoint, run_state
from lit_tbptt.training.callbacks import RunCheckpoint, SafeCheckpointIO, SignalHandling, StepProgressBar
from lit_tbptt.training.loggers import run_loggers
from lit_tbptt.training.module import LitTBPTT
from lit_tbptt.training.position import Position

say = rank_zero_only(print)


class LitCLI(LightningCLI):
    """LightningCLI for a task: run folders, exact resumes, signals, and a table at the end.

    `LitCLI(MyTask, MyData)` in a script is a whole command line with the subcommands fit, validate and test. What a
    user can correct is one message and a non-zero exit status.

    Args:
        model_class: The task.
        datamodule_class: Its data. None: the task has loaders of its own, or `--data` names a class.
        args: The command line. None: that of the process.
        **options: Further arguments of LightningCLI.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        # Evaluation sums in float64, which Apple's GPUs lack.
        "trainer.accelerator": "auto" if torch.cuda.is_available() else "cpu",
    }

    def __init__(
        self,
        model_class: type[LitTBPTT],
        datamodule_class: type[LightningDataModule] | None = None,
        args: list[str] | None = None,
        **options: Any,
    ) -> None:
        self._checkpoint: Checkpoint | None = None  # what --ckpt_path names
        self._checkpoint_path = Path()
        self._saved_settings: dict[str, Any] = {}
        self._now: dict[str, Any] = {}  # the settings of this run, plain
        self._given: list[str] = []
        self._reserved: RunFolder | None = None
        trainer_defaults = dict(options.pop("trainer_defaults", None) or {})
        callbacks = trainer_defaults.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        trainer_defaults["callbacks"] = [*callbacks, SignalHandling()]
        set_up_process()
        with one_message():
            try:
                super().__init__(
                    model_class,
                    datamodule_class,
                    trainer_defaults=trainer_defaults,
                    args=args,
                    auto_configure_optimizers=False,
                    load_from_checkpoint_support=False,
                    **{"seed_everything_default": 1, "save_config_kwargs": {"overwrite": True}} | options,
                )
            except BaseException:
                if self._reserved is not None:
                    self._reserved.discard_if_empty()
                raise

    # Settings: defaults < checkpoint < configuration file < command line

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_arguments(parser)
        parser.set_defaults({**LitCLI.defaults, **self.defaults})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        given = list(sys.argv[1:] if args is None else args)
        subparser = self._subcommand_parsers.get(given[0]) if given else None
        self._given = given if subparser is None else self._set_defaults(subparser, given)
        if subparser is not None:
            unprinted = [arg for arg in self._given if not arg.startswith("--print_config")]
            chosen = parser.parse_args(unprinted)
            subparser.set_defaults(own_defaults(subparser, chosen[chosen.subcommand]))
        self.config = parser.parse_args(self._given)
        asked = self.config[self.config.subcommand].ckpt_path
        if asked is not None and self._checkpoint is None:
            raise InputError(f"ckpt_path={str(asked)!r}: give it on the command line, after the subcommand")
        self._now = yaml.safe_load(parser.dump(self.config, skip_none=False))[self.config.subcommand]
        for line in changes(self._saved_settings, self._now):
            say(line)

    def _set_defaults(self, subparser: LightningArgumentParser, given: list[str]) -> list[str]:
        subparser.set_defaults(self.chosen_defaults(given))
        asked, weights = option(given, "ckpt_path"), option(given, "init_from")
        if "--help" in given or "-h" in given or any(".help" in arg for arg in given):
            return given
        files = [file for file in option_values(given, "config", "c") if Path(file).is_file()]
        named = words([*given, *(Path(file).read_text() for file in files)])
        classes = class_options(subparser)
        if asked is not None and not asked.startswith("-"):
            path, self._checkpoint = find_checkpoint(asked, runs_of(config_file(given)), option(given, "run_name"))
            self._checkpoint_path = path
            self.check_checkpoint(self._checkpoint)
            say(f"checkpoint: {path}, optimizer step {self._checkpoint['global_step']}", file=sys.stderr)
            self._saved_settings = checkpoint_settings(self._checkpoint, given[0] == "fit", named, classes)
            subparser.set_defaults(self._saved_settings)
            given = set_option(given, "ckpt_path", str(path))
        elif weights is not None:
            saved = checkpoint_settings(read_checkpoint(weights), False, named, classes)
            network = [f"model.{name}" for name in self._model_class.network_settings]
            subparser.set_defaults({name: saved[name] for name in network if name in saved})
        return given

    def chosen_defaults(self, given: list[str]) -> dict[str, Any]:
        """Returns further defaults for a command line; a subclass may choose them by what is given."""
        return {}

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Raises InputError where `--ckpt_path` names a checkpoint that is not this command line's."""
        run_state(checkpoint)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: `parse_arguments` has read the checkpoint, below what the command line says."""

    # Objects

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        check_trainer_options(trainer)
        own_loggers = self.subcommand == "fit" and trainer.logger in (None, True) and not trainer.fast_dev_run
        if self.subcommand != "fit":
            self.save_config_callback = None
        if self.subcommand != "fit" or own_loggers:
            kwargs["logger"] = False
        continued = self._continued_run() if own_loggers else None
        if continued is not None:
            self.save_config_kwargs["config_filename"] = continued.config(self._saved_step()).name
        if trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(StepProgressBar())
        kwargs["plugins"] = [*(trainer.plugins or []), SafeCheckpointIO()]
        made = super().instantiate_trainer(**kwargs)
        if getattr(made.strategy, "_start_method", "popen") != "popen":
            raise InputError(
                f"trainer.strategy={trainer.strategy}: it forks or spawns processes that bring no model back; from the "
                "command line use ddp"
            )
        for callback in made.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.settings = self._now
        if own_loggers:
            made.loggers = self._run_loggers(continued, made.is_global_zero)
        return made

    def _continued_run(self) -> RunFolder | None:
        return None if self._checkpoint is None else RunFolder.of_checkpoint(self._checkpoint_path)

    def _saved_step(self) -> int:
        assert self._checkpoint is not None
        return run_state(self._checkpoint)["position"]["step"]

    def _run_loggers(self, continued: RunFolder | None, writes: bool) -> list[Any]:
        if continued is not None:
            assert self._checkpoint is not None
            if self._nothing_left():
                return run_loggers(continued, sys.maxsize)  # nothing will be written, so nothing is dropped
            return run_loggers(continued, self._saved_step(), run_state(self._checkpoint)["log"]["tokens"])
        runs, name = runs_of(config_file(self._given)), self._get(self.config, "run_name")
        if not writes:  # only rank 0 does, in the folder that it reserves
            return run_loggers(RunFolder(runs / (name or f"version_{next_version(runs)}")))
        self._reserved = RunFolder.reserve(runs, name)
        return run_loggers(self._reserved)

    # Subcommands

    def _nothing_left(self) -> bool:
        end = self._get(self.config, "trainer").max_steps
        if self._checkpoint is None or not 0 <= end <= self._checkpoint["global_step"]:
            return False
        return not Position(**run_state(self._checkpoint)["position"]).awaits_end

    def before_fit(self) -> None:
        own = type(self.model).configure_optimizers is not LitTBPTT.configure_optimizers
        if own and any(arg.startswith(("--optimizer", "--lr_scheduler")) for arg in self._given):
            name = f"{type(self.model).__name__}.configure_optimizers"
            say(f"{name} makes the optimizer: --optimizer and --lr_scheduler count only where it calls super()")
        weights = self._get(self.config, "init_from")
        if self._checkpoint is not None:
            if weights is not None:
                raise InputError("init_from and ckpt_path: a run is either new or continued; give one of them")
            if self._nothing_left():
                say(f"nothing is left to train: the checkpoint is at optimizer step {self._checkpoint['global_step']}")
            self.model.changed_optimizer = changed_options("optimizer", self._saved_settings, self._now)
            self.model.changed_schedule = changed_options("lr_scheduler", self._saved_settings, self._now)
        elif weights is not None:
            checkpoint = read_checkpoint(weights)
            self.model.on_load_checkpoint(checkpoint)
            self.model.load_state_dict(checkpoint["state_dict"])

    def before_validate(self) -> None:
        self._need_checkpoint()

    def before_test(self) -> None:
        self._need_checkpoint()

    def _need_checkpoint(self) -> None:
        if self._checkpoint is None:
            raise InputError(f"ckpt_path is not given: {self.subcommand} needs a checkpoint to evaluate")

    def validate(self, **kwargs: Any) -> None:
        """Evaluates the validation split and prints a table."""
        self.trainer.validate(**kwargs | {"verbose": False})
        say(result_table({"validation": self._metrics("val")}))

    def test(self, **kwargs: Any) -> None:
        """Evaluates the test split and prints a table."""
        self.trainer.test(**kwargs | {"verbose": False})
        say(result_table({"test": self._metrics("test")}))

    def _metrics(self, prefix: str) -> dict[str, float]:
        return {
            key.removeprefix(f"{prefix}/"): float(value)
            for key, value in self.trainer.callback_metrics.items()
            if key.startswith(f"{prefix}/")
        }

    # What a fit prints at its end

    def after_fit(self) -> None:
        """Evaluates the best checkpoint, prints a table, and says where everything lies."""
        saved = next(callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint))
        path = saved.best_model_path or saved.last_model_path
        if self.trainer.fast_dev_run or not path:
            return
        # An evaluation of the best checkpoint is no point of the curves.
        loggers, self.trainer.loggers = self.trainer.loggers, []
        results = {}
        for split, prefix, evaluate in (
            ("validation", "val", self.trainer.validate),
            ("test", "test", self.trainer.test),
        ):
            if self.has_split(split):
                evaluate(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
                if values := self._metrics(prefix):  # there are none with limit_test_batches=0
                    results[split] = values
        self.trainer.loggers = loggers
        if results:
            say(f"\n{result_table(results)}\n")
        if not self.trainer.is_global_zero:
            return
        draw_finished_run(saved.folder.path)
        self.report(results)
        print(f"run folder: {saved.folder.path}\ncheckpoint: {path}")
        for purpose, command in self.next_commands(path, saved.last_model_path).items():
            print(f"{purpose + ':':11} {command}")

    def has_split(self, split: str) -> bool:
        """Tells whether there is such a split, `validation` or `test`, to evaluate."""
        hook = {"validation": "val_dataloader", "test": "test_dataloader"}[split]
        return is_overridden(hook, self.model) or (
            self.datamodule is not None and is_overridden(hook, self.datamodule, LightningDataModule)
        )

    def report(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Prints more about the best checkpoint, which `self.model` holds; on rank 0 only."""

    def next_commands(self, best: str, last: str) -> dict[str, str]:
        """Returns what can be done with the run, by purpose."""
        configs = "".join(f" --config {file}" for file in self._get(self.config, "config") or [])
        named = "".join(f" --{name} {path}" for name, path in foreign_classes(self._now).items())
        fit = f"python {Path(sys.argv[0]).name} fit{configs} --ckpt_path {last}{named} --trainer.max_steps N"
        return {"continue": fit}
