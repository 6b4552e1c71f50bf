"""TextCLI, the command line for text: the default job, tokenizers from checkpoints, the report at the end."""

from collections.abc import Mapping
from shlex import quote
from typing import Any, ClassVar

from lit_tbptt.cli.app import LitCLI
from lit_tbptt.cli.command_line import given_value, option
from lit_tbptt.cli.commands import program
from lit_tbptt.cli.compressors import MOST_BYTES, comparison_table, compressor_bits_per_byte
from lit_tbptt.cli.messages import visible
from lit_tbptt.cli.settings import foreign_paths
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizer_choice import BUILT_IN, from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint, run_state
from lit_tbptt.training.language_model import LitLanguageModel
from lit_tbptt.training.text_data import TextLanesDataModule

# Only for the default job. If you choose one of the options named here, the class's own defaults apply.
_DEFAULT_JOB = {
    # Bytes need no wide embedding.
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


class TextCLI(LitCLI):
    """The command line for a `LitLanguageModel` on a `TextLanesDataModule`.

    Args:
        args: The command line. None: that of the process.
    """

    # The default job of `fit`: about two minutes on two CPU cores.
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
            "Train and use a stateful language model by truncated BPTT. One more subcommand is generate: it continues "
            "prompts from a checkpoint; see generate --help."
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
        given = option(self._given, "data.tokenizer")
        if self._checkpoint is not None:
            if given is None or given in BUILT_IN:  # a file may have been moved: what it holds is compared later
                self._take_tokenizer()
        elif given is None and self.model.tokenizer is not None:  # of --init_from
            self.datamodule.tokenizer = self.model.tokenizer

    def before_validate(self) -> None:
        super().before_validate()
        self._take_tokenizer()

    def before_test(self) -> None:
        super().before_test()
        self._take_tokenizer()

    def _take_tokenizer(self) -> None:
        assert self._checkpoint is not None
        described = run_state(self._checkpoint)["tokenizer"]
        asked = given_value(self._given, "data.tokenizer")
        if asked not in (None, described["name"]):
            raise InputError(
                f"data.tokenizer={asked!r} with a checkpoint that was trained with {described['name']!r}: leave it "
                "out, and the checkpoint's is used"
            )
        self.datamodule.tokenizer = from_description(described)

    def report(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Compares bits per byte with compressors, and prints a sample."""
        test = self.datamodule.splits.get("test")
        stored = isinstance(test, TokenFile) and test.num_bytes <= MOST_BYTES
        if stored and "test" in results and results["test"]["num_targets"] == test.num_tokens:
            bits = results["test"].get("bits_per_byte")
            if bits is None:
                print(f"not compared with compressors: {test.num_unknown:,} of the test split's tokens are <unk>\n")
            else:
                compressed = compressor_bits_per_byte(self.datamodule.documents["test"])
                print(f"{comparison_table({'this model': bits} | compressed)}\n")
        (sample,) = self.model.generate([""], 300, temperature=0.8, seed=1)
        print(f"a sample:\n{visible(sample)}\n")

    def next_commands(self, best: str, last: str) -> dict[str, str]:
        named = "".join(f" --core {quote(path)}" for path in foreign_paths(self._now["model"]["core"]))
        write = f"{program()} generate --ckpt_path {quote(best)}{named} --prompt '...'"
        return {"write": write, **super().next_commands(best, last)}
