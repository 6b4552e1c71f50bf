"""TextLanesDataModule: a Hugging Face corpus as windows of contiguous lanes."""

import os
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from lit_tbptt.data.corpus_lanes import corpus_lanes
from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.data.lanes.window_lengths import WindowLengths
from lit_tbptt.data.summary import run_summary
from lit_tbptt.data.text.corpus import open_corpus
from lit_tbptt.data.text.documents import NO_STREAM_IS_CUT, load_documents
from lit_tbptt.data.text.stream import DocumentStream
from lit_tbptt.data.text.token_file import TokenFile
from lit_tbptt.data.text.tokenizer_choice import from_description, from_object
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank
from lit_tbptt.training.ddp import rank_of

if TYPE_CHECKING:
    import tokenizers

    Source: TypeAlias = Any
    TokenizerChoice: TypeAlias = str | Tokenizer | tokenizers.Tokenizer
else:
    # On the command line both are plain strings; for a class, jsonargparse would read a file of that name as settings.
    Source = TokenizerChoice = str

# Settings that determine the windows, which a resumed run cannot change.
_FIXED_IN_A_RUN = (
    *("num_lanes", "windows_per_batch", "streaming", "num_readers"),
    *("document_reset", "shuffle", "rotate_lanes", "repeat", "seed"),
)
# Objects are not saved as hyperparameters, which are plain values.
_NOT_SAVED = ("self", "__class__", "key", "window_lengths")


class TextLanesDataModule(LightningDataModule):
    """Divides a text corpus into parallel contiguous lanes and cuts them into windows.

    With several processes, each one gets a contiguous share of the lanes, as evenly divided as possible.

    Args:
        path: A file (text, parquet, JSON, CSV), a folder, or a name on the Hugging Face Hub. Left out: the source code
            of Python's standard library. Of a folder, the files named train, valid and test are the splits; it may also
            be one that `save_to_disk` wrote. JSON is an object a line. From Python it may be a `Path`, a dataset of any
            kind, a list of texts, a data frame or series of pandas or polars, or a dict of these by split.
        name: The dataset's configuration, where it has several.
        text_column: The column that holds the text.
        val_fraction: Share of the training split that is held out where there is no validation split. It is the last of
            its documents, or of its characters where it is one document. Left out: .05, and none of a stream, of which
            nothing can be held out.
        split_salt: Decides which files of the default corpus are held out.
        load_options: Further arguments of `datasets.load_dataset`, such as `sample_by: line`. Others are
            `encoding_errors: replace` and `data_files`.
        tokenizer: `byte`, `char`, `word`, `bpe`, or a Hugging Face tokenizer's name, folder or `tokenizer.json`. From
            Python also a `Tokenizer`, a `tokenizers.Tokenizer`, or a fast tokenizer of `transformers`. After `setup` it
            is a `Tokenizer`.
        vocabulary_limit: Largest vocabulary of the word or bpe tokenizer. Left out: every word of the training split,
            or 4096 for bpe.
        num_lanes: Parallel sequences in training.
        k1: Tokens per lane between two optimizer steps. On the command line it follows model.k1.
        windows_per_batch: Windows that travel in one Lightning batch. It changes nothing but speed, and what
            Lightning counts in batches; a resumed run keeps it.
        window_lengths: Draws the lengths of the windows of training, such as NormalLengths. The maximum is k1. The
            learning rate of a step is multiplied by its window's length / the mean. Left out: all have k1 tokens.
        eval_num_lanes: Parallel sequences in validation, test and prediction. Prediction reads the test split.
        streaming: Whether the corpus is read as it is needed and never stored. For one that does not fit on the disk
            or changes. Lanes then take whole documents as they run dry, instead of stretches of the corpus.
        num_readers: When streaming, groups of training lanes that read a part of the shards each. Shards are files, or
            row groups of parquet files. The number must divide num_lanes. Each process reads for the groups its lanes
            are in: choose a multiple of the number of processes.
        document_reset: Whether each document begins at a window's start, from the initial state. The window before it
            is then padded. If not, the state runs on from one document to the next.
        shuffle: Whether every epoch has another order of documents, or of shards when streaming.
        rotate_lanes: Whether lanes are cut elsewhere in every epoch after the first. It begins at another token of the
            training split and goes round. Not when streaming.
        repeat: Whether training starts the stream again at its end within the same epoch. The epoch then never ends,
            and no lane runs dry. Only when streaming.
        seed: Decides what shuffle and rotate_lanes do.
        cache_dir: Where datasets and token files are kept. Left out: the Hugging Face cache.

    Attributes:
        splits: What the splits are read from, known after `setup`.
        documents: The datasets they come from.

    Raises:
        InputError: A number is below 1, or settings do not go together.
    """

    def __init__(
        self,
        path: Source | None = None,
        name: str | None = None,
        text_column: str = "text",
        val_fraction: float | None = None,
        split_salt: str = "lit_tbptt",
        load_options: dict[str, Any] | None = None,
        tokenizer: TokenizerChoice = "byte",
        vocabulary_limit: int | None = None,
        num_lanes: int = 16,
        k1: int = 64,
        windows_per_batch: int = 8,
        window_lengths: WindowLengths | None = None,
        eval_num_lanes: int = 16,
        streaming: bool = False,
        num_readers: int = 1,
        document_reset: bool = False,
        shuffle: bool = False,
        rotate_lanes: bool = False,
        repeat: bool = False,
        seed: int = 1,
        cache_dir: str | None = None,
    ) -> None:
        for key in ("num_lanes", "k1", "windows_per_batch", "eval_num_lanes", "num_readers"):
            if locals()[key] < 1:
                raise InputError(f"data.{key}={locals()[key]}: must be 1 or more")
        if seed < 0:
            raise InputError(f"data.seed={seed}: must be 0 or more")
        if streaming and rotate_lanes:
            raise InputError(
                "data.rotate_lanes=True with data.streaming=True: only stored lanes can begin elsewhere; leave it out"
            )
        if not streaming and (repeat or num_readers > 1):
            raise InputError(
                f"data.num_readers={num_readers}, data.repeat={repeat} with data.streaming=False: they are for "
                "streams, leave them out"
            )
        if window_lengths is not None:
            window_lengths.check(k1, document_reset, "data.")
        super().__init__()
        self.window_lengths = window_lengths
        self.path = os.fspath(path) if isinstance(path, os.PathLike) else path
        self.tokenizer = None if isinstance(tokenizer, str) else from_object(tokenizer)
        # Data and objects stay out of the checkpoint, which holds plain values only.
        path, tokenizer = _plain(self.path), _plain(tokenizer)
        given = {key: value for key, value in locals().items() if key not in _NOT_SAVED}
        self.save_hyperparameters(given, logger=False)
        # Preparing a stream only creates its vocabulary, which all machines share.
        self.prepare_data_per_node = not streaming
        self.splits: dict[str, TokenFile | DocumentStream] = {}
        self.documents: dict[str, Any] = {}

    @property
    def _settings(self) -> Any:
        return self.hparams

    @property
    def _rank(self) -> Rank:
        return Rank() if self.trainer is None else rank_of(self.trainer)

    @property
    def cache(self) -> Path:
        root = self._settings.cache_dir
        return (Path(root) if root else Path(datasets.config.HF_CACHE_HOME)) / "lit_tbptt"

    def prepare_data(self) -> None:
        """Loads, tokenizes and stores the corpus, in one process per machine."""
        try:
            self._open()
        except KeyboardInterrupt:
            if self.trainer is None:
                raise
            rank_zero_info("stopped by SIGINT while the corpus was prepared; the part that was done is removed")
            raise SystemExit(128 + signal.SIGINT) from None

    def setup(self, stage: str) -> None:
        """Opens the stored corpus; sets `tokenizer`, `splits` and `documents`."""
        if self._settings.streaming and self._rank.num_ranks > 1:
            # A vocabulary that took a pass over the stream is broadcast, so that not every process makes the pass.
            described = self.trainer.strategy.broadcast(self.tokenizer and self.tokenizer.describe())
            self.tokenizer = self.tokenizer or from_description(described)
        self._open()
        needed = {"validate": "validation", "test": "test", "predict": "test"}.get(stage, "train")
        if needed not in self.splits:
            held_out = NO_STREAM_IS_CUT if self._settings.streaming else "set data.val_fraction above 0 to hold one out"
            how = {"validate": f"; {held_out}", "predict": "; to predict other texts, give path={'test': texts}"}
            raise InputError(
                f"data.path={self._settings.path!r}: has no {needed} split, only {', '.join(self.splits)}"
                + how.get(stage, "")
            )
        # Creates the lanes, so that too few tokens or shards are detected before training.
        if needed == "train":
            assert self.tokenizer is not None
            lanes = self.train_dataloader()
            if self._rank.number == 0:
                rank_zero_info(run_summary(self.splits, self.tokenizer, lanes, self._rank))
        if needed != "test":
            self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run must not change, by the name of the setting that determines it."""
        if "train" not in self.splits:  # this data module is of texts to test or to predict
            return {}
        settings, train = self._settings, self.splits["train"]
        size, content = (
            (f"{train.num_tokens} tokens", train.content)
            if isinstance(train, TokenFile)
            else (f"{train.num_shards} shards", train.first_document_hash)
        )
        return {
            "model.k1": settings.k1,
            "data.window_lengths": self.window_lengths and repr(self.window_lengths),
            **{f"data.{name}": settings[name] for name in _FIXED_IN_A_RUN},
            "data.path": f"{settings.path or 'the default corpus'}, {size}, {content[:16]}",
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a resumed run reads the same windows.

        Raises:
            InputError: It does not.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        for name, ours in self.state_dict().items():
            theirs = state_dict.get(name, ours)
            if _compared(name, ours) != _compared(name, theirs):
                raise InputError(
                    f"{name}: {ours}, where the run to be resumed has {theirs}: a resumed run cannot change it; keep "
                    "it, or start a new run from these weights with --init_from"
                )

    def has_split(self, split: str) -> bool:
        """Returns whether there is such a split: train, validation or test. Known after `setup`."""
        return split in self.splits

    def train_dataloader(self) -> Lanes:
        settings, num_ranks = self._settings, self._rank.num_ranks
        if settings.num_lanes < num_ranks:
            raise InputError(
                f"data.num_lanes={settings.num_lanes} with {num_ranks} processes: each needs a lane to train on; use "
                f"at least {num_ranks} lanes, or fewer devices"
            )
        sizes = {name: settings[name] for name in ("k1", "windows_per_batch")} | {"window_lengths": self.window_lengths}
        shuffle_seed = settings.seed if settings.shuffle else None
        if settings.streaming:
            order = {"num_readers": settings.num_readers, "repeat": settings.repeat, "shuffle_seed": shuffle_seed}
        else:
            order = {"shuffle_seed": shuffle_seed, "rotation_seed": settings.seed if settings.rotate_lanes else None}
        return self._lanes("train", "num_lanes", **sizes, **order)

    def val_dataloader(self) -> Lanes | list[Lanes]:
        if "validation" in self.splits:
            return self.evaluation_dataloader("validation")
        # An empty list tells Lightning not to validate, but it warns about its length.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> Lanes:
        return self.evaluation_dataloader("test")

    def predict_dataloader(self) -> Lanes:
        return self.test_dataloader()

    def evaluation_dataloader(self, split: str) -> Lanes:
        """Returns a split, `train`, `validation` or `test`, in the lanes of evaluations."""
        k1, windows_per_batch = self._settings.k1, self._settings.windows_per_batch
        if not self._settings.document_reset:
            # Evaluation does not truncate, so a batch is one long window.
            k1, windows_per_batch = k1 * windows_per_batch, 1
        return self._lanes(split, "eval_num_lanes", k1=k1, windows_per_batch=windows_per_batch)

    def _lanes(self, split: str, argument: str, **options: Any) -> Lanes:
        source, num_lanes = self.splits[split], self._settings[argument]
        assert self.tokenizer is not None
        options["document_reset"] = self._settings.document_reset
        return corpus_lanes(source, split, self.tokenizer, num_lanes, argument, self._rank, **options)

    def _open(self) -> None:
        if self.splits:
            return
        settings = self._settings
        options = (settings.load_options or {}) | ({"cache_dir": settings.cache_dir} if settings.cache_dir else {})
        split = (settings.text_column, settings.val_fraction, settings.split_salt)
        self.documents = load_documents(self.path, settings.name, *split, options, settings.streaming)
        self.tokenizer, self.splits = open_corpus(
            self.documents,
            self.tokenizer or settings.tokenizer,
            settings.vocabulary_limit,
            self.cache,
            settings.streaming,
        )


def _compared(name: str, value: Any) -> Any:
    # The path may differ if the tokens are the same.
    return value.split(", ")[-2:] if name == "data.path" else value


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | None) else f"<{type(value).__name__}>"
