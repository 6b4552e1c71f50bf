"""The command line: settings and where they come from, and what a run prints and leaves behind."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
)
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_tbptt.cli.reports import MOST_BYTES, comparison_table, compressor_bits_per_byte, result_table
from lit_tbptt.cli.settings import (
    DEFAULT_JOB,
    DEFAULTS,
    REFUSED,
    changed_options,
    changes,
    checkpoint_settings,
    config_name,
    find_checkpoint,
    next_version,
    option,
    set_option,
    words,
)
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizers import from_description
from lit_tbptt.errors import DivergenceError, InputError, SourceError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.training.callbacks import RunCheckpoint, SafeCheckpointIO, SignalHandling, StepProgressBar
from lit_tbptt.training.language_model import LitLanguageModel
from lit_tbptt.training.lit_trainer import GeneratingTrainer
from lit_tbptt.training.loggers import run_loggers
from lit_tbptt.training.text_data import TextLanesDataModule

say = rank_zero_only(print)


class LitCLI(LightningCLI):
    """LightningCLI with this package's defaults, run folders, resumes and reports."""

    def __init__(self, args: list[str] | None = None) -> None:
        self._checkpoint: dict[str, Any] | None = None  # what --ckpt_path names
        self._checkpoint_path = Path()
        self._saved_settings: dict[str, Any] = {}
        self._now: dict[str, Any] = {}  # the settings of this run, plain
        self._given: list[str] = []
        super().__init__(
            LitLanguageModel,
            TextLanesDataModule,
            trainer_class=GeneratingTrainer,
            trainer_defaults={"callbacks": [SignalHandling()]},
            seed_everything_default=1,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"description": "Train and use a stateful language model by truncated BPTT."},
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # Settings: defaults < checkpoint < configuration file < command line

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate", "test")} | {"generate": {"model"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--optimizer", type=OptimizerCallable, help="Optimizer: a class of torch.optim, or a path.")
        parser.add_argument(
            "--lr_scheduler",
            type=LRSchedulerCallable | None,
            help="Schedule: WarmupCosineLR, a class of torch.optim.lr_scheduler, or a path.",
        )
        parser.add_argument(
            "--run_name",
            type=str | None,
            help="Name of the run's folder, runs/<config name>/<run_name>, and of the run that --ckpt_path last and "
            "best mean. Left out: a new version_<n>, and the run that was written to last.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            help="For fit: start a new run from the weights of this checkpoint, and nothing else of it.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.link_arguments("optimizer", "model.optimizer")
        parser.link_arguments("lr_scheduler", "model.lr_scheduler")
        parser.link_arguments("model.k1", "data.k1")
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        given = list(sys.argv[1:] if args is None else args)
        subparser = self._subcommand_parsers.get(given[0]) if given else None
        self._given = given if subparser is None else self._set_defaults(subparser, given)
        self.config = parser.parse_args(self._given)
        asked = self.config[self.config.subcommand].ckpt_path
        if asked is not None and self._checkpoint is None:
            raise InputError(f"ckpt_path={str(asked)!r}: give it on the command line, after the subcommand")
        self._now = yaml.safe_load(parser.dump(self.config, skip_none=False))[self.config.subcommand]
        for line in changes(self._saved_settings, self._now):
            say(line)

    def _set_defaults(self, subparser: LightningArgumentParser, given: list[str]) -> list[str]:
        for name, (value, choices) in DEFAULT_JOB.items():
            if not any(f"{arg} ".startswith(choices) for arg in given):
                subparser.set_defaults({name: value})
        asked, weights = option(given, "ckpt_path"), option(given, "init_from")
        if "--help" in given or "-h" in given or any(".help" in arg for arg in given):
            return given
        files = [arg for arg in (option(given, "config"), option(given, "c")) if arg and Path(arg).is_file()]
        named = words([*given, *(Path(file).read_text() for file in files)])
        if asked is not None and not asked.startswith("-"):
            runs = Path("runs") / config_name(given)
            path, self._checkpoint = find_checkpoint(asked, runs, option(given, "run_name"))
            self._checkpoint_path = path
            say(f"checkpoint: {path}, optimizer step {self._checkpoint['global_step']}", file=sys.stderr)
            self._saved_settings = checkpoint_settings(self._checkpoint, given[0] == "fit", named)
            subparser.set_defaults(self._saved_settings)
            given = set_option(given, "ckpt_path", str(path))
        elif weights is not None:
            saved = checkpoint_settings(read_checkpoint(weights), False, named)
            subparser.set_defaults({name: saved[name] for name in ("model.core", "model.tie_weights")})
        return given

    def _parse_ckpt_path(self) -> None:
        """Does nothing: `parse_arguments` has read the checkpoint, below what the command line says."""

    # Objects

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        for option_name, instead in REFUSED.items():
            if trainer[option_name] not in (None, 1 if option_name == "accumulate_grad_batches" else None):
                raise InputError(
                    f"trainer.{option_name}={trainer[option_name]}: manual optimization cannot take it; {instead}"
                )
        if self.subcommand != "fit":
            kwargs["logger"] = False
            self.save_config_callback = None
        elif trainer.logger in (None, True) and not trainer.fast_dev_run:
            kwargs["logger"] = self._run_loggers()
        if trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(StepProgressBar())
        kwargs["plugins"] = [*(trainer.plugins or []), SafeCheckpointIO()]
        made = super().instantiate_trainer(**kwargs)
        if getattr(made.strategy, "_start_method", "popen") != "popen":
            raise InputError(
                f"trainer.strategy={trainer.strategy}: it forks or spawns processes that bring no model back; from the "
                "command line use ddp"
            )
        for saving in made.checkpoint_callbacks:
            saving.settings = self._now
        return made

    def _run_loggers(self) -> list[Any]:
        path = self._checkpoint_path
        if self._checkpoint is not None and path.parent.name == "checkpoints":
            step = self._checkpoint["tbptt"]["position"]["step"]
            self.save_config_kwargs["config_filename"] = f"config_from_step_{step}.yaml"
            run = path.resolve().parent.parent
            if self._nothing_left():
                return run_loggers(run, sys.maxsize)  # nothing will be written, so nothing is dropped
            return run_loggers(run, step, self._checkpoint["tbptt"]["log"]["tokens"])
        runs = Path("runs") / config_name([f"--config={file}" for file in self._get(self.config, "config") or []])
        name = self._get(self.config, "run_name") or next_version(runs)
        if any((runs / name).glob("checkpoints/*.ckpt")):
            raise InputError(
                f"run_name={name!r}: {runs / name} has checkpoints; continue it with --ckpt_path last, or "
                "choose another name"
            )
        return run_loggers(runs / name)

    # Subcommands

    def _nothing_left(self) -> bool:
        end = self._get(self.config, "trainer").max_steps
        return self._checkpoint is not None and 0 <= end <= self._checkpoint["global_step"]

    def before_fit(self) -> None:
        weights, tokenizer = self._get(self.config, "init_from"), option(self._given, "data.tokenizer")
        if self._checkpoint is not None:
            if weights is not None:
                raise InputError("init_from and ckpt_path: a run is either new or continued; give one of them")
            if self._nothing_left():
                say(f"nothing is left to train: the checkpoint is at optimizer step {self._checkpoint['global_step']}")
            if tokenizer is None:
                self._take_tokenizer()
            self.model.changed_optimizer = changed_options("optimizer", self._saved_settings, self._now)
            self.model.changed_schedule = changed_options("lr_scheduler", self._saved_settings, self._now)
        elif weights is not None:
            checkpoint = read_checkpoint(weights)
            self.model.on_load_checkpoint(checkpoint)
            self.model.load_state_dict(checkpoint["state_dict"])
            if tokenizer is None:
                self.datamodule.tokenizer = self.model.tokenizer

    def before_validate(self) -> None:
        self._take_tokenizer()

    def before_test(self) -> None:
        self._take_tokenizer()

    def _take_tokenizer(self) -> None:
        if self._checkpoint is None:
            raise InputError(f"ckpt_path is not given: {self.subcommand} needs a checkpoint to evaluate")
        self.datamodule.tokenizer = from_description(self._checkpoint["tokenizer"])

    def validate(self, **kwargs: Any) -> None:
        """Evaluates the validation split and prints a table."""
        self.trainer.validate(**kwargs | {"verbose": False})
        say(result_table({"validation": self._found("val")}))

    def test(self, **kwargs: Any) -> None:
        """Evaluates the test split and prints a table."""
        self.trainer.test(**kwargs | {"verbose": False})
        say(result_table({"test": self._found("test")}))

    def generate(self, datamodule: TextLanesDataModule, **kwargs: Any) -> None:
        """Continues prompts and prints the texts; the datamodule is not needed."""
        self.trainer.generate(**kwargs)

    def _found(self, prefix: str) -> dict[str, float]:
        metrics = self.trainer.callback_metrics
        return {
            key.removeprefix(f"{prefix}/"): float(value)
            for key, value in metrics.items()
            if key.startswith(f"{prefix}/")
        }

    def after_fit(self) -> None:
        """Evaluates the best checkpoint, compares it, shows a sample, and says where everything lies."""
        saved = self.trainer.checkpoint_callback
        path = saved.best_model_path or saved.last_model_path
        if self.trainer.fast_dev_run or not path:
            return
        results = {}
        for split, prefix, evaluate in (
            ("validation", "val", self.trainer.validate),
            ("test", "test", self.trainer.test),
        ):
            if split in self.datamodule.splits:
                evaluate(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
                results[split] = self._found(prefix)
        say(f"\n{result_table(results)}\n")
        folder = self.trainer.log_dir  # asked by all
        if not self.trainer.is_global_zero:
            return
        test = self.datamodule.splits.get("test")
        stored = isinstance(test, TokenFile) and test.num_bytes <= MOST_BYTES
        if stored and results["test"]["num_targets"] == test.num_tokens:
            ours = {"this model": results["test"]["bits_per_byte"]}
            print(f"{comparison_table(ours | compressor_bits_per_byte(self.datamodule.documents['test']))}\n")
        (sample,) = self.model.generate([""], 300, temperature=0.8, seed=1)
        script = Path(sys.argv[0]).name
        core = self._get(self.config, "model.core.class_path")
        named = "" if core.startswith("lit_tbptt.") else f" --model.core {core}"
        configs = "".join(f" --config {file}" for file in self._get(self.config, "config") or [])
        print(f"a sample:\n{sample}\n\nrun folder: {folder}\ncheckpoint: {path}")
        print(f"write:      python {script} generate --ckpt_path {path}{named} --prompt '...'")
        print(
            f"continue:   python {script} fit{configs} --ckpt_path {saved.last_model_path}{named} --trainer.max_steps N"
        )


def main(args: list[str] | None = None) -> None:
    """Runs the command line; what a user can mend is one message and a non-zero exit status."""
    # Lightning 2.6 calls a jsonargparse function by its old name; a user can do nothing about it.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")  # likewise, and a torch function
    # A gradient that has come far back vanishes into numbers below 1e-38, with which a CPU computes many times slower.
    torch.set_flush_denormal(True)
    try:
        LitCLI(args)
    except (InputError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except (DivergenceError, SourceError) as error:
        sys.exit(f"stopped: {error}")
