"""LitCLI: LightningCLI with run folders, exact resume, signals and reports, for any task and data module."""

import sys
import warnings
from collections.abc import Mapping
from shlex import quote
from signal import SIGINT, SIGTERM
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_tbptt.cli.arguments import check_trainer_options, trainer_option_named
from lit_tbptt.cli.commands import program
from lit_tbptt.cli.messages import one_message
from lit_tbptt.cli.parsing import SettingsCLI, say
from lit_tbptt.cli.plot import draw_finished_run
from lit_tbptt.cli.process import quiet_lightning, set_up_process, set_up_torch
from lit_tbptt.cli.reports import result_table
from lit_tbptt.cli.runs import SaveSettings, Start, runs_of_command_line
from lit_tbptt.cli.settings import changed_options, foreign_classes
from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.files.run_folder import RunFolder, next_version
from lit_tbptt.files.schema import run_state
from lit_tbptt.training.callbacks import RunCheckpoint, SafeCheckpointIO, SignalHandling, StepProgressBar
from lit_tbptt.training.dynamic_evaluation import DynamicEvaluation  # noqa: F401 - a choice of --model.evaluation
from lit_tbptt.training.loggers import folder_alone, run_loggers
from lit_tbptt.training.module import LitTBPTT
from lit_tbptt.training.position import Position


class LitCLI(SettingsCLI):
    """LightningCLI for a task: run folders, exact resume, signals, and a table at the end.

    `LitCLI(MyTask, MyData)` in a script is a complete command line with the subcommands fit, validate and test. Errors
    that a user can correct end with one message and a non-zero exit status.

    Args:
        model_class: The task.
        datamodule_class: The data. None: the task defines loaders, or `--data` names a class.
        args: The command line. None: that of the process.
        **options: Further arguments of LightningCLI.
    """

    def __init__(
        self,
        model_class: type[LitTBPTT],
        datamodule_class: type[LightningDataModule] | None = None,
        args: list[str] | None = None,
        **options: Any,
    ) -> None:
        self._start: Start | None = None
        trainer_defaults = dict(options.pop("trainer_defaults", None) or {})
        callbacks = trainer_defaults.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        trainer_defaults["callbacks"] = [*callbacks, SignalHandling()]
        set_up_process()
        set_up_torch()
        quiet_lightning()
        with one_message():
            try:
                super().__init__(
                    model_class,
                    datamodule_class,
                    trainer_defaults=trainer_defaults,
                    args=args,
                    auto_configure_optimizers=False,
                    load_from_checkpoint_support=False,
                    **{
                        "seed_everything_default": 1,
                        "save_config_callback": SaveSettings,
                        "save_config_kwargs": {"overwrite": True},
                    }
                    | options,
                )
            except BaseException as error:
                if self._start is not None:
                    self._start.undo()
                    if isinstance(error, SystemExit) and error.code in (128 + SIGINT, 128 + SIGTERM):
                        self._say_how_to_continue()
                raise

    # Objects

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        check_trainer_options(trainer)
        has_folder = self.subcommand == "fit" and not trainer.fast_dev_run
        if not has_folder:
            self.save_config_callback = None
        if self.subcommand != "fit" or trainer.logger in (None, True):
            kwargs["logger"] = False
        continued = self._continued_run() if has_folder else None
        if continued is not None:
            self.save_config_kwargs["config_filename"] = continued.config(self._saved_step()).name
        given = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        if trainer.enable_progress_bar is not False and not any(isinstance(each, ProgressBar) for each in given):
            self.trainer_defaults["callbacks"].append(StepProgressBar())
        kwargs["plugins"] = [*(trainer.plugins or []), SafeCheckpointIO()]
        with trainer_option_named(trainer):
            made = super().instantiate_trainer(**kwargs)
        if getattr(made.strategy, "_start_method", "popen") != "popen":
            raise InputError(
                f"trainer.strategy={trainer.strategy}: it forks or spawns processes that bring no model back; from the "
                "command line use ddp"
            )
        for callback in made.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.settings = self._now
        if has_folder:
            own = self._run_loggers(continued, made.is_global_zero)
            made.loggers = [*(own if trainer.logger is not False else folder_alone(own)), *made.loggers]
            if self._start is not None:
                made.callbacks.append(self._start)
        return made

    def _continued_run(self) -> RunFolder | None:
        return None if self._checkpoint is None else RunFolder.of_checkpoint(self._checkpoint_path)

    def _saved_step(self) -> int:
        assert self._checkpoint is not None
        return run_state(self._checkpoint)["position"]["step"]

    def _run_loggers(self, continued: RunFolder | None, writes: bool) -> list[Any]:
        if continued is not None:
            assert self._checkpoint is not None
            self._start = Start(continued) if writes else None
            if self._end_reached():
                return run_loggers(continued, sys.maxsize)  # nothing will be written, so keep all rows
            return run_loggers(continued, self._saved_step(), run_state(self._checkpoint)["log"]["tokens"])
        runs, name = runs_of_command_line(self._given), self._get(self.config, "run_name")
        if not writes:  # only rank 0 writes, in the folder that it reserves
            return run_loggers(RunFolder(runs / (name or f"version_{next_version(runs)}")))
        missing = [each for each in (runs, *runs.parents) if not each.exists()]
        folder = RunFolder.reserve(runs, name)
        self._start = Start(folder, missing)
        return run_loggers(folder)

    # Subcommands

    def _end_reached(self) -> str:
        """Returns where the checkpoint is, if that is the end of the run already; otherwise nothing."""
        trainer = self._get(self.config, "trainer")
        if self._checkpoint is None:
            return ""
        position = Position(**run_state(self._checkpoint)["position"])
        if 0 <= trainer.max_steps <= position.step and not position.awaits_end:
            return f"optimizer step {position.step}, of trainer.max_steps={trainer.max_steps}"
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= position.epoch:
            return f"the end of epoch {position.epoch}, of trainer.max_epochs={trainer.max_epochs}"
        return ""

    def before_fit(self) -> None:
        own = type(self.model).configure_optimizers is not LitTBPTT.configure_optimizers
        if own and any(arg.startswith(("--optimizer", "--lr_scheduler")) for arg in self._given):
            name = f"{type(self.model).__name__}.configure_optimizers"
            say(f"{name} makes the optimizer: --optimizer and --lr_scheduler have no effect unless it calls super()")
        weights = self._get(self.config, "init_from")
        if self._checkpoint is not None:
            if weights is not None:
                raise InputError("init_from and ckpt_path: a run is either new or continued; give one of them")
            if end := self._end_reached():
                say(f"nothing is left to train: the checkpoint is at {end}")
            given = {callback.state_key for callback in self.trainer.callbacks}
            if missing := [key for key in self._checkpoint.get("callbacks") or () if key not in given]:
                warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # of Lightning, three times
                say(
                    f"trainer.callbacks: the run to be continued has {' and '.join(missing)}, and this command does "
                    "not: it goes on without; give the --config that the run was started with, or --trainer.callbacks"
                )
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
        say(result_table({self._column("validation"): self._metrics("val")}))

    def test(self, **kwargs: Any) -> None:
        """Evaluates the test split and prints a table."""
        self.trainer.test(**kwargs | {"verbose": False})
        say(result_table({self._column("test"): self._metrics("test")}))

    def _column(self, split: str) -> str:
        name = self.model.evaluation.name
        return split if name == self.model.static_evaluation.name else f"{split}, {name}"

    def _metrics(self, prefix: str) -> dict[str, float]:
        return {
            key.removeprefix(f"{prefix}/"): float(value)
            for key, value in self.trainer.callback_metrics.items()
            if key.startswith(f"{prefix}/")
        }

    # The report at the end of a fit

    def after_fit(self) -> None:
        """Evaluates the best checkpoint, and prints a table, the paths, and the next commands."""
        saved = next(callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoint))
        path = saved.best_model_path or saved.last_model_path
        if self.trainer.fast_dev_run or (not path and self._end_reached()):
            return
        if not path and self.trainer.global_step == 0:
            say("nothing was trained: see trainer.max_steps, max_epochs, max_time and limit_train_batches")
            return
        if not path:
            sys.exit(f"stopped: no checkpoint could be written to {saved.folder.checkpoints}: see the warnings above")
        # An evaluation of the best checkpoint is no point of the curves.
        loggers, self.trainer.loggers = self.trainer.loggers, []
        results = self.evaluate(path)
        self.trainer.loggers = loggers
        if results:
            say(f"\nof {path}, optimizer step {read_checkpoint(path)['global_step']}:\n{result_table(results)}\n")
        if not self.trainer.is_global_zero:
            return
        if saved.validated_step not in (None, self.trainer.global_step):
            last, since = quote(saved.last_model_path), saved.validated_step
            print(f"not validated since optimizer step {since}: {program()} validate --ckpt_path {last}\n")
        draw_finished_run(saved.folder.path)
        self.report(results)
        print(f"run folder: {saved.folder.path}\ncheckpoint: {path}")
        for purpose, command in self.next_commands(path, saved.last_model_path).items():
            print(f"{purpose + ':':11} {command}")

    def evaluate(self, path: str) -> dict[str, dict[str, float]]:
        """Returns the metrics of a checkpoint by split; those of the last split also by `model.evaluation`."""
        given, static = self.model.evaluation, self.model.static_evaluation
        kinds = (("validation", "val", self.trainer.validate), ("test", "test", self.trainer.test))
        runs = [(*kind, static) for kind in kinds if self.has_split(kind[0])]
        if given.name != static.name:
            runs += [(*run[:3], given) for run in runs[-1:]]
        results = {}
        for split, prefix, evaluate, evaluation in runs:
            self.model.evaluation = evaluation
            try:
                evaluate(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
            except InputError as error:
                if evaluation is static:
                    raise
                say(f"no {given.name} evaluation: {error}")  # the run is not lost by it
                continue
            if values := self._metrics(prefix):  # there are none with limit_test_batches=0
                results[self._column(split)] = values
        self.model.evaluation = given
        return results

    def _say_how_to_continue(self) -> None:
        trainer: Trainer | None = getattr(self, "trainer", None)  # a signal may come before there is one
        saved = [each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint)] if trainer else []
        if saved and (last := saved[0].last_model_path):
            say(f"continue:   {self.next_commands(saved[0].best_model_path or last, last)['continue']}")

    def has_split(self, split: str) -> bool:
        """Returns whether a split, `validation` or `test`, exists."""
        if hasattr(self.datamodule, "has_split"):  # ours have loaders for splits that a dataset may lack
            return self.datamodule.has_split(split)
        hook = {"validation": "val_dataloader", "test": "test_dataloader"}[split]
        return is_overridden(hook, self.model) or (
            self.datamodule is not None and is_overridden(hook, self.datamodule, LightningDataModule)
        )

    def report(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Prints more about the best checkpoint, which is loaded in `self.model`; called on rank 0 only."""

    def next_commands(self, best: str, last: str) -> dict[str, str]:
        """Returns commands that use the run, by purpose."""
        configs = "".join(f" --config {quote(str(file))}" for file in self._get(self.config, "config") or [])
        named = "".join(f" --{name} {quote(path)}" for name, path in foreign_classes(self._now).items())
        fit = f"{program()} fit{configs} --ckpt_path {quote(last)}{named} --trainer.{self._limit()} N"
        return {"continue": fit}

    def _limit(self) -> str:
        """Returns the option to raise for a longer run: what ended this one, or would have."""
        trainer = self.trainer
        last_epoch = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
        by_epochs = trainer.max_steps == -1 and trainer.max_epochs != -1
        by_epochs |= last_epoch and trainer.global_step < trainer.max_steps
        return "max_epochs" if by_epochs else "max_steps"
