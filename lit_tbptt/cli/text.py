"""TextCLI, the command line for text: the default job, tokenizers from checkpoints, the report at the end."""

from collections.abc import Mapping
from shlex import quote
from typing import Any, ClassVar

from lit_tbptt.cli.app import LitCLI
from lit_tbptt.cli.command_line import given_value, option
from lit_tbptt.cli.commands import program
from lit_tbptt.cli.compressors import AFTER_TRAINING, MOST_BYTES, Compressors, comparison_table
from lit_tbptt.cli.messages import visible
from lit_tbptt.cli.parsing import say
from lit_tbptt.cli.settings import foreign_paths
from lit_tbptt.cores.described import texts_of_modules
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizer_choice import BUILT_IN, from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint, run_state
from lit_tbptt.training.language_model import LitLanguageModel
from lit_tbptt.training.text_data import TextLanesDataModule

# Defaults, and the options that switch them off: then the class's own apply. Later ones replace earlier ones.
_OWN = ("--config", "-c", "--data.path", "--data.tokenizer")
_ADAMW: dict[str, Any] = {
    "class_path": "torch.optim.AdamW",
    "init_args": {"lr": 4e-3, "betas": [0.9, 0.99], "weight_decay": 0.01, "fused": True},
}
_ANY_TEXT: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    (
        "optimizer",
        _ADAMW,
        ("--config", "-c", "--optimizer=", "--optimizer "),
    ),
    (
        "model.core",  # bytes need no wide embedding
        {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256, "input_size": 64}},
        ("--config", "-c", "--model.core", "--model.tie_weights", "--data.tokenizer"),
    ),
)
# What `fit` trains on the default corpus; docs/log.md has what else was tried.
_DEFAULT_JOB: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    (
        "optimizer",
        _ADAMW | {"init_args": _ADAMW["init_args"] | {"lr": 1e-2}},
        (*_OWN, "--optimizer=", "--optimizer "),
    ),
    (
        "model.core",
        {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256, "input_size": 128}},
        (*_OWN, "--model.core", "--model.tie_weights", "--model.head"),
    ),
    ("model.tie_weights", True, (*_OWN, "--model.core", "--model.tie_weights", "--model.head")),
    ("model.k1", 16, (*_OWN, "--model.k1", "--model.k2")),
    (
        "model.evaluation",  # these rates are for this model: one that is trained less may need smaller ones
        {
            "class_path": "lit_tbptt.DynamicEvaluation",
            "init_args": {"lr": 0.005, "decay": 0.005, "statistics_windows": 500},
        },
        (
            *_OWN,
            "--model",
            "--data.num_lanes",
            "--data.vocab",
            "--optimizer",
            "--lr_scheduler",
            "--trainer.max_",
            "--ckpt_path",
        ),
    ),
    ("data.tokenizer", "bpe", _OWN),
    ("data.vocabulary_limit", 4096, (*_OWN, "--data.vocabulary_limit")),
    ("data.num_lanes", 32, (*_OWN, "--data.num_lanes")),
    ("trainer.max_steps", 4000, (*_OWN, "--trainer.max_steps")),
    ("trainer.val_check_interval", 125, (*_OWN, "--trainer.max_steps", "--trainer.val_check_interval")),
)

_WHAT_IS_FAIR = """\
This model has read the training text, gzip and xz alone have not. The last row is what the test text adds to the
training text under xz, which copies passages that stand in both word for word.
"""


class TextCLI(LitCLI):
    """The command line for a `LitLanguageModel` on a `TextLanesDataModule`.

    Args:
        args: The command line. None: that of the process.
    """

    # About two minutes on two CPU cores, for any text without a config.
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
        chosen = {
            name: value
            for name, value, choices in (*_ANY_TEXT, *_DEFAULT_JOB)
            if not any(f"{arg} ".startswith(choices) for arg in given)
        }
        optimizer = given_value(given, "optimizer")
        named = optimizer.get("class_path") if isinstance(optimizer, Mapping) else optimizer
        if str(named).rpartition(".")[2] in ("LBFGS", "HessianFree"):  # these choose their own step and its length
            chosen |= {"lr_scheduler": None, "model.clip_norm": None}
        return chosen

    def check_checkpoint(self, checkpoint: Checkpoint) -> None:
        if "tokenizer" not in run_state(checkpoint):
            raise InputError("the checkpoint is not one of this package's language models")

    def before_fit(self) -> None:
        super().before_fit()
        if self._checkpoint is not None:
            self.model.check_same_network(self._checkpoint)
        for text in texts_of_modules(self.model.hparams["core"]):
            say(
                f"model.core: a checkpoint cannot build this module of TorchCore, so that generate, score and export "
                f"cannot use it, and Python needs core=TorchCore(module, ...); for these, write a subclass of "
                f"TorchCore with plain arguments: {text.splitlines()[0]}"
            )
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

    def evaluate(self, path: str) -> dict[str, dict[str, float]]:
        self._compressors = self._start_compressors() if self.trainer.is_global_zero else None
        try:
            return super().evaluate(path)
        except BaseException:
            if self._compressors is not None:
                self._compressors.stop()
            raise

    def _start_compressors(self) -> Compressors | None:
        splits, documents = self.datamodule.splits, self.datamodule.documents
        test, train = (splits.get(name) for name in ("test", "train"))
        if not isinstance(test, TokenFile) or test.num_bytes > MOST_BYTES or test.num_unknown:
            return None
        small = isinstance(train, TokenFile) and train.num_bytes <= MOST_BYTES
        return Compressors(documents["test"], documents["train"] if small else None)

    def report(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """Compares bits per byte with compressors, and prints a sample."""
        test = self.datamodule.splits.get("test")
        whole = {
            column.replace("test", "this model"): values
            for column, values in results.items()
            if column.startswith("test") and isinstance(test, TokenFile) and values["num_targets"] == test.num_tokens
        }
        if whole and test.num_unknown:
            print(f"not compared with compressors: {test.num_unknown:,} of the test split's tokens are <unk>\n")
        if self._compressors is not None and not whole:
            self._compressors.stop()
        elif self._compressors is not None:
            ours = {name: values["bits_per_byte"] for name, values in whole.items()}
            theirs = self._compressors.bits_per_byte()
            print(f"{comparison_table(ours | theirs)}\n")
            if AFTER_TRAINING in theirs:
                print(_WHAT_IS_FAIR)
        (sample,) = self.model.generate([""], 300, temperature=0.8, seed=1)
        print(f"a sample:\n{visible(sample)}\n")

    def next_commands(self, best: str, last: str) -> dict[str, str]:
        named = "".join(f" --core {quote(path)}" for path in foreign_paths(self._now["model"]["core"]))
        write = f"{program()} generate --ckpt_path {quote(best)}{named} --prompt '...'"
        usable = {} if texts_of_modules(self.model.hparams["core"]) else {"write": write}
        return usable | super().next_commands(best, last)
