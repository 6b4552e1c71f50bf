"""The command line: settings and where they come from, and what a run prints and leaves behind."""

import os
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_tbptt.callbacks import RunCheckpoint, SafeCheckpointIO, StepProgressBar
from lit_tbptt.checkpoint import read_checkpoint
from lit_tbptt.data.tokenizers import from_description
from lit_tbptt.errors import DivergenceError, InputError
from lit_tbptt.lit_datamodule import TextLanesDataModule
from lit_tbptt.lit_language_model import LitLanguageModel
from lit_tbptt.report import MOST_BYTES, comparison_table, compressor_bits_per_byte, result_table

# The job that `fit` does without a configuration: about two minutes on two CPU cores.
DEFAULTS = {
    "model.core": {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256, "input_size": 64}},
    "model.clip_norm": 1.0,
    "optimizer": {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 4e-3, "betas": (0.9, 0.99), "weight_decay": 0.01, "fused": True},
    },
    "lr_scheduler": {"class_path": "lit_tbptt.WarmupCosineLR", "init_args": {"warmup_steps": 100}},
    "trainer.max_steps": 4800,
    "trainer.max_epochs": -1,
    "trainer.val_check_interval": 300,  # batches of 8 windows
    "trainer.check_val_every_n_epoch": None,
    "trainer.log_every_n_steps": 25,
}
# Options of the trainer that manual optimization cannot take, and what to use instead.
REFUSED = {
    "gradient_clip_val": "set model.clip_norm",
    "gradient_clip_algorithm": "set model.clip_norm, which clips by norm",
    "accumulate_grad_batches": "use more lanes (data.num_lanes) or longer windows (model.k1)",
}


class GeneratingTrainer(Trainer):
    """Lightning's trainer, with one more thing to run."""

    def generate(
        self,
        model: LitLanguageModel,
        ckpt_path: str,
        prompt: list[str] | str = "",
        num_tokens: int = 400,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 1,
    ) -> list[str]:
        """Continue prompts from a checkpoint.

        Args:
            model: The model.
            ckpt_path: The checkpoint; nothing else is needed.
            prompt: What to continue: one text, or a list of them, ["a", "b"].
            num_tokens: Tokens to add.
            temperature: Divides the logits before sampling; 0 takes the likeliest token each time.
            top_k: Sample among the k likeliest tokens only. Left out: among all.
            seed: The same seed gives the same text.
        """
        checkpoint = read_checkpoint(ckpt_path)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        model.to(self.strategy.root_device)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generated = model.generate(prompts, num_tokens, temperature, top_k, seed)
        for given, text in zip(prompts, generated, strict=True):
            print(given + text)
        return generated


class LitCLI(LightningCLI):
    """LightningCLI with this package's defaults, run folders and reports."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            LitLanguageModel,
            TextLanesDataModule,
            trainer_class=GeneratingTrainer,
            trainer_defaults={"callbacks": [StepProgressBar(), RunCheckpoint()]},
            seed_everything_default=1,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"description": "Train and use a stateful language model by truncated BPTT."},
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

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
        parser.link_arguments("optimizer", "model.optimizer")
        parser.link_arguments("lr_scheduler", "model.lr_scheduler")
        parser.link_arguments("model.k1", "data.k1")
        parser.set_defaults(DEFAULTS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with the settings of a given checkpoint in the place of the defaults."""
        given = sys.argv[1:] if args is None else args
        path = _option(given, "ckpt_path")
        if path is not None and Path(path).is_file():
            settings = _checkpoint_settings(path)
            for subparser in self._subcommand_parsers.values():
                subparser.set_defaults(settings)
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: `parse_arguments` has read the checkpoint, below what the command line says."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        for option, instead in REFUSED.items():
            if trainer[option] not in (None, 1 if option == "accumulate_grad_batches" else None):
                raise InputError(f"trainer.{option}={trainer[option]}: manual optimization cannot take it; {instead}")
        if self.subcommand == "fit" and trainer.logger in (None, True) and not trainer.fast_dev_run:
            kwargs["logger"] = _loggers(Path("runs") / self._config_name())
        elif self.subcommand != "fit":
            kwargs["logger"] = False
            self.save_config_callback = None
        kwargs["plugins"] = [*(trainer.plugins or []), SafeCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _config_name(self) -> str:
        files = self._get(self.config, "config") or []
        return Path(str(files[-1])).stem if files else "default"

    def before_validate(self) -> None:
        self._take_tokenizer()

    def before_test(self) -> None:
        self._take_tokenizer()

    def _take_tokenizer(self) -> None:
        path = self._get(self.config, "ckpt_path")
        if path is None:
            raise InputError(f"ckpt_path is not given: {self.subcommand} needs a checkpoint to evaluate")
        self.datamodule.tokenizer = from_description(read_checkpoint(path)["tokenizer"])

    def validate(self, **kwargs: Any) -> None:
        """Evaluates the validation split and prints a table."""
        self.trainer.validate(**kwargs | {"verbose": False})
        print(result_table({"validation": self._found("val")}))

    def test(self, **kwargs: Any) -> None:
        """Evaluates the test split and prints a table."""
        self.trainer.test(**kwargs | {"verbose": False})
        print(result_table({"test": self._found("test")}))

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
        if self.trainer.fast_dev_run or not isinstance(saved, RunCheckpoint):
            return
        path = saved.best_model_path or saved.last_model_path
        results = {}
        for split, prefix, evaluate in (
            ("validation", "val", self.trainer.validate),
            ("test", "test", self.trainer.test),
        ):
            if split in self.datamodule.splits:
                evaluate(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False)
                results[split] = self._found(prefix)
        print(f"\n{result_table(results)}\n")
        if "test" in results and self.datamodule.splits["test"].num_bytes <= MOST_BYTES:
            ours = {"this model": results["test"]["bits_per_byte"]}
            print(f"{comparison_table(ours | compressor_bits_per_byte(self.datamodule.documents['test']))}\n")
        (sample,) = self.model.generate([""], 400, temperature=0.8, seed=1)
        print(f"a sample:\n{sample}\n\nrun folder: {self.trainer.log_dir}\ncheckpoint: {path}")
        script = Path(sys.argv[0]).name
        print(f"continue:   python {script} generate --ckpt_path {path} --prompt 'def '")


def main(args: list[str] | None = None) -> None:
    """Runs the command line; what a user can mend is one message and a non-zero exit status."""
    # Lightning 2.6 calls a jsonargparse function by its old name; a user can do nothing about it.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    try:
        LitCLI(args)
    except (InputError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except DivergenceError as error:
        sys.exit(f"stopped: {error}")


def _option(args: list[str], name: str) -> str | None:
    for place, arg in enumerate(args):
        if arg == f"--{name}" and place + 1 < len(args):
            return args[place + 1]
        if arg.startswith(f"--{name}="):
            return arg.split("=", 1)[1]
    return None


def _checkpoint_settings(path: str) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    model = dict(checkpoint["hyper_parameters"])
    data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data.pop("k1", None)  # follows model.k1
    settings = {f"model.{name}": value for name, value in model.items()}
    core = settings["model.core"]
    if "." not in core["class_path"]:
        settings["model.core"] = core | {"class_path": f"lit_tbptt.{core['class_path']}"}
    return settings | {f"data.{name}": value for name, value in data.items()}


def _loggers(folder: Path) -> list[CSVLogger | TensorBoardLogger]:
    taken = [
        int(path.name.removeprefix("version_"))
        for path in folder.glob("version_*")
        if path.name.removeprefix("version_").isdigit()
    ]
    version = f"version_{max(taken, default=-1) + 1}"
    return [
        CSVLogger(str(folder.parent), folder.name, version, flush_logs_every_n_steps=1),
        TensorBoardLogger(str(folder.parent), folder.name, version),
    ]
