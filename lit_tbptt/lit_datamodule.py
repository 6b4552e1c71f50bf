"""The data side for Lightning: a Hugging Face corpus as windows of contiguous lanes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from lit_tbptt.checkpoint import replacing
from lit_tbptt.data.documents import load_documents, texts
from lit_tbptt.data.lanes import StridedLanes
from lit_tbptt.data.token_file import TokenFile, fingerprint, token_file
from lit_tbptt.data.tokenizers import BUILT_IN, Tokenizer, from_description, make_tokenizer
from lit_tbptt.errors import InputError

if TYPE_CHECKING:
    Source: TypeAlias = str | Dataset | DatasetDict
    TokenizerChoice: TypeAlias = str | Tokenizer
else:
    # On the command line both are plain strings; for a class, jsonargparse would read a file of that name as settings.
    Source = TokenizerChoice = str


class TextLanesDataModule(LightningDataModule):
    """Lays a text corpus into parallel contiguous lanes and cuts them into windows.

    Args:
        path: A name on the Hugging Face Hub; a folder with train/valid/test files; a file: text, parquet, JSON lines,
            CSV; a folder that `save_to_disk` wrote; from Python also a `Dataset` or `DatasetDict`. Left out: the
            source code of Python's standard library.
        name: The dataset's configuration, where it has several.
        text_column: The column that holds the text.
        val_fraction: Share of the training split that becomes the validation split where the dataset has none: the
            last of its documents, or of its characters where it is one document.
        split_salt: Decides which files of the default corpus are held out.
        load_options: Further arguments of `datasets.load_dataset`, such as `encoding_errors: replace`,
            `sample_by: line` or `data_files`.
        tokenizer: `byte`, `char`, `word`; a `tokenizer.json` file, a folder with one, or its name on the Hugging Face
            Hub; from Python also a `Tokenizer`.
        vocabulary_limit: Largest vocabulary of the word tokenizer. Left out: every word of the training split.
        num_lanes: Parallel sequences in training.
        k1: Tokens per lane between two optimizer steps. On the command line it follows model.k1.
        windows_per_batch: Windows that travel in one Lightning batch. It changes nothing but speed, and what
            Lightning counts in batches; a resumed run keeps it.
        eval_num_lanes: Parallel sequences in validation and test.
        cache_dir: Where datasets and token files are kept. Left out: the Hugging Face cache.

    Raises:
        InputError: A number is below 1.
    """

    def __init__(
        self,
        path: Source | None = None,
        name: str | None = None,
        text_column: str = "text",
        val_fraction: float = 0.05,
        split_salt: str = "lit_tbptt",
        load_options: dict[str, Any] | None = None,
        tokenizer: TokenizerChoice = "byte",
        vocabulary_limit: int | None = None,
        num_lanes: int = 16,
        k1: int = 64,
        windows_per_batch: int = 8,
        eval_num_lanes: int = 16,
        cache_dir: str | None = None,
    ) -> None:
        for key in ("num_lanes", "k1", "windows_per_batch", "eval_num_lanes"):
            if locals()[key] < 1:
                raise InputError(f"data.{key}={locals()[key]}: must be 1 or more")
        super().__init__()
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__", "key")}
        # Objects stay out of the checkpoint, which holds plain values only.
        self.save_hyperparameters(
            {key: f"<{type(value).__name__}>" if _is_object(value) else value for key, value in given.items()},
            logger=False,
        )
        self.path = path
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
        self.splits: dict[str, TokenFile] = {}
        self.documents: dict[str, Dataset] = {}

    @property
    def _settings(self) -> Any:
        return self.hparams

    @property
    def cache(self) -> Path:
        root = self._settings.cache_dir
        return (Path(root) if root else Path(datasets.config.HF_CACHE_HOME)) / "lit_tbptt"

    def prepare_data(self) -> None:
        """Loads, tokenizes and stores the corpus, on one process only."""
        self._open()

    def setup(self, stage: str) -> None:
        """Opens what `prepare_data` stored; `tokenizer`, `splits` and `documents` are known from here on."""
        self._open()
        needed = {"fit": "train", "validate": "validation", "test": "test"}.get(stage, "train")
        if needed not in self.splits:
            raise InputError(
                f"data.path={self._settings.path!r}: has no {needed} split, only {', '.join(self.splits)}"
                + ("; set data.val_fraction above 0 to hold one out" if needed == "validation" else "")
            )
        # Too few tokens for the lanes is found out here, before anything is trained.
        if needed == "train":
            self.train_dataloader()
        if needed != "test":
            self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run must find again, by the name of the setting that decides it."""
        settings, train = self._settings, self.splits["train"]
        return {
            "data.num_lanes": settings.num_lanes,
            "model.k1": settings.k1,
            "data.windows_per_batch": settings.windows_per_batch,
            "data.path": f"{settings.path or 'the default corpus'}, {train.num_tokens} tokens, {train.content[:16]}",
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes sure that a resumed run reads the same windows.

        Raises:
            InputError: It would not.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        for name, ours in self.state_dict().items():
            # The same tokens may have been moved.
            if str(ours).split(", ")[-2:] != str(state_dict[name]).split(", ")[-2:]:
                raise InputError(
                    f"{name}: {ours}, where the run to be resumed has {state_dict[name]}: a resumed run cannot change "
                    "it; keep it, or start a new run from these weights with --init_from"
                )

    def train_dataloader(self) -> StridedLanes:
        return self._lanes("train", self._settings.num_lanes, "num_lanes", self._settings.windows_per_batch)

    def val_dataloader(self) -> StridedLanes | list[StridedLanes]:
        # Lightning takes an empty list for "nothing to validate on".
        return self._evaluation_lanes("validation") if "validation" in self.splits else []

    def test_dataloader(self) -> StridedLanes:
        return self._evaluation_lanes("test")

    def _evaluation_lanes(self, split: str) -> StridedLanes:
        # Nothing is cut in evaluation, so a batch is one long window.
        return self._lanes(split, self._settings.eval_num_lanes, "eval_num_lanes", 1, self._settings.windows_per_batch)

    def _lanes(
        self, split: str, num_lanes: int, argument: str, windows_per_batch: int, length: int = 1
    ) -> StridedLanes:
        tokens = self.splits[split]
        assert self.tokenizer is not None
        if tokens.num_tokens < num_lanes:
            raise InputError(
                f"data.{argument}={num_lanes}: the {split} split has {tokens.num_tokens} tokens, and every lane needs "
                f"one; set data.{argument} to {tokens.num_tokens} or fewer"
            )
        return StridedLanes(
            tokens.ids,
            self.tokenizer.eos,
            num_lanes,
            self._settings.k1 * length,
            windows_per_batch,
            tokens.bytes_per_token,
        )

    def _open(self) -> None:
        if self.splits:
            return
        settings = self._settings
        self.documents = load_documents(
            self.path,
            settings.name,
            settings.text_column,
            settings.val_fraction,
            settings.split_salt,
            (settings.load_options or {}) | ({"cache_dir": settings.cache_dir} if settings.cache_dir else {}),
        )
        if self.tokenizer is None:
            self.tokenizer = self._make_tokenizer(settings.tokenizer, settings.vocabulary_limit)
        self.splits = {
            split: token_file(documents, self.tokenizer, self.cache, split)
            for split, documents in self.documents.items()
        }
        rank_zero_info(self.summary())

    def _make_tokenizer(self, name: str, vocabulary_limit: int | None) -> Tokenizer:
        if name not in BUILT_IN or name == "byte":
            return make_tokenizer(name, (), vocabulary_limit)
        if "train" not in self.documents:
            raise InputError(f"data.tokenizer={name!r}: takes its vocabulary from a train split, and there is none")
        train = self.documents["train"]
        file = self.cache / f"{fingerprint(train, name, vocabulary_limit)}.tokenizer.json"
        if not file.exists():
            tokenizer = make_tokenizer(name, (text for some in texts(train) for text in some), vocabulary_limit)
            with replacing(file) as beside:
                beside.write_text(json.dumps(tokenizer.describe()))
        return from_description(json.loads(file.read_text()))

    def summary(self) -> str:
        """Returns a table of the splits and the size of the vocabulary."""
        assert self.tokenizer is not None
        lines = [f"{'split':12}{'documents':>14}{'tokens':>16}{'bytes':>16}{'bytes/token':>14}"]
        lines += [
            f"{split:12}{tokens.num_documents:14,}{tokens.num_tokens:16,}{tokens.num_bytes:16,}"
            f"{tokens.bytes_per_token:14.3f}"
            for split, tokens in self.splits.items()
        ]
        return "\n".join([*lines, f"{self.tokenizer.name} tokenizer, vocabulary of {self.tokenizer.vocabulary_size:,}"])


def _is_object(value: Any) -> bool:
    return isinstance(value, (Dataset, DatasetDict, Tokenizer))
