"""The command line for text: the default job, tokenizers from checkpoints, and what a language model reports."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import auto_cli

from lit_tbptt.cli.app import LitCLI
from lit_tbptt.cli.command_line import option
from lit_tbptt.cli.compressors import MOST_BYTES, comparison_table, compressor_bits_per_byte
from lit_tbptt.cli.generate import generate
from lit_tbptt.cli.messages import one_message
from lit_tbptt.cli.plot import plot
from lit_tbptt.cli.process import set_up_process
from lit_tbptt.cli.settings import foreign_classes
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizers import from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint, run_state
from lit_tbptt.training.language_model import LitLanguageModel
from lit_tbptt.training.text_data import TextLanesDataModule

# What suits the default job alone. If you choose one of the options named here, the class's own defaults apply.
_DEFAULT_JOB = {
    # A byte needs no wide embedding.
    "model.core": (
        {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256, "input_size": 64}},
        ("--config", "-c", "--model.core", "--model.tie_weights", "--data.tokenizer"),
    ),
    "optimizer": (
        {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 4e-3, "betas": [0.9, 0.99], "weight_decay": 0.01, "fused": True},
        },
        ("--config", "-c", "--optimizer=", "--optimizer "),
    ),
}
_COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": partial(auto_cli, generate, as_positional=False),
    "plot": plot,
}


class TextCLI(LitCLI):
    """The command line for a `LitLanguageModel` on a `TextLanesDataModule`.

    Args:
        args: The command line. None: that of the process.
    """

    # The job that `fit` does without a configuration: about two minutes on two CPU cores.
    defaults: ClassVar[Mapping[str, Any]] = {
        "model.core": {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256}},
        "model.clip_norm": 1.0,
        "lr_scheduler": {"class_path": "lit_tbptt.WarmupCosineLR", "init_args": {"warmup_steps": 100}},
        "trainer.max_steps": 4800,
        "trainer.max_epochs": -1,
        "trainer.val_check_interval": 300,  # batches of 8 windows
        "trainer.check_val_every_n_epoch": None,
        "trainer.log_every_n_steps": 25,
    }

    def __init__(self, args: list[str] | None = None) -> None:
        description = (
            "Train and use a stateful language model by truncated BPTT. Two more subcommands: generate continues "
            "prompts from a checkpoint, and plot draws and compares runs; see generate --help and plot --help."
        )
        super().__init__(LitLanguageModel, TextLanesDataModule, args, parser_kwargs={"description": description})

    def chosen_defaults(self, given: list[str]) -> dict[str, Any]:
        return {
            name: value
            for name, (value, choices) in _DEFAULT_JOB.items()
            if not any(f"{arg} ".startswith(choices) for arg in given)
        }

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        if "tokenizer" not in run_state(checkpoint):
            raise InputError("the checkpoint is not one of this package's language models")

    def before_fit(self) -> None:
        super().before_fit()
        if option(self._given, "data.tokenizer") is None:
            if self._checkpoint is not None:
                self._take_tokenizer()
            elif self.model.tokenizer is not None:  # of --init_from
                self.datamodule.tokenizer = self.model.tokenizer

    def before_validate(self) -> None:
        super().before_validate()
        self._take_tokenizer()

    def before_test(self) -> None:
        super().before_test()
        self._take_tokenizer()

    def _take_tokenizer(self) -> None:
        assert self._checkpoint is not None
        self.datamodule.tokenizer = from_description(run_state(self._checkpoint)["tokenizer"])

    def has_split(self, split: str) -> bool:
        return split in self.datamodule.splits

    def report(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Compares bits per byte with compressors, and shows a sample."""
        test = self.datamodule.splits.get("test")
        stored = isinstance(test, TokenFile) and test.num_bytes <= MOST_BYTES
        if stored and "test" in results and results["test"]["num_targets"] == test.num_tokens:
            ours = {"this model": results["test"]["bits_per_byte"]}
            print(f"{comparison_table(ours | compressor_bits_per_byte(self.datamodule.documents['test']))}\n")
        (sample,) = self.model.generate([""], 300, temperature=0.8, seed=1)
        print(f"a sample:\n{sample}\n")

    def next_commands(self, best: str, last: str) -> dict[str, str]:
        core = foreign_classes(self._now).get("model.core")
        named = "" if core is None else f" --core {core}"
        write = f"python {Path(sys.argv[0]).name} generate --ckpt_path {best}{named} --prompt '...'"
        return {"write": write, **super().next_commands(best, last)}


def main(args: list[str] | None = None) -> None:
    """Runs the command line; what a user can correct is one message and a non-zero exit status."""
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in _COMMANDS:
        set_up_process()
        with one_message():
            _COMMANDS[given[0]](args=given[1:], prog=f"{Path(sys.argv[0]).name} {given[0]}")
    else:
        TextCLI(given)
