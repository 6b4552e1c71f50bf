"""Sequences of any kind as windows of lanes, for Lightning: from Python, or anything that `load_dataset` reads."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_tbptt.data.lanes.sequences import SequenceLanes
from lit_tbptt.data.sequences.dtypes import Dtypes
from lit_tbptt.data.sequences.leaves import Selector
from lit_tbptt.data.sequences.normalization import Normalization, measure
from lit_tbptt.data.sequences.source import SequenceSource
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank
from lit_tbptt.training.ddp import rank_of

if TYPE_CHECKING:
    from lit_tbptt.data.sequences.dtypes import DtypeChoice

    DatasetPath: TypeAlias = str | os.PathLike[str]
else:
    # On the command line these are plain strings.
    DatasetPath, DtypeChoice = str, str | dict[str, str]

_NAMES = {"train": "train", "val": "validation", "test": "test"}
_SPLITS = {"fit": "train", "validate": "validation", "test": "test", "predict": "test"}


class SequenceLanesDataModule(LightningDataModule):
    """Datasets of sequences as windows of lanes.

    In training the sequences are dealt to `num_lanes` lanes; for an evaluation each is run whole, in order, in at most
    `eval_num_lanes` lanes.

    Args:
        train: A dataset with `len` and an index; see `SequenceLanes`.
        val: Likewise, to validate on.
        test: Likewise, to test on.
        path: In place of the three: a file in parquet or JSON lines with a sequence in a row; a folder of such files,
            or one that `save_to_disk` wrote; a name on the Hugging Face Hub; or a loader such as `parquet` with
            `load_options.data_files`. The splits are train, validation and test.
        name: The configuration of that dataset.
        load_options: Further arguments of `load_dataset`.
        inputs: The leaves, or columns, that are the inputs: a key, several, or a function of a slice. Left out:
            `inputs`, or the first leaf of a tuple.
        targets: Those that are the targets. Left out: `targets`, or the second leaf of a tuple.
        static: Those that belong to the whole sequence, and have no time axis.
        mask: The leaf that is true where a target counts.
        lengths: The time steps of every item of `train`, `val` and `test`, by these names. Left out: every item is
            opened once to find its length, or the lengths are known from the columns of a dataset.
        shift: The targets are the inputs this number of time steps later. 0: they are leaves of their own.
        num_lanes: Parallel lanes in training, those of all processes together.
        k1: Time steps per lane and window; on the command line the model's.
        windows_per_batch: Windows per batch.
        eval_num_lanes: The most lanes of an evaluation.
        max_length: Longer sequences are cut into pieces of this number of time steps, in training.
        burn_in: Time steps after a reset that are run and not scored.
        shuffle: Whether training takes the sequences in another order in every epoch.
        repeat: Whether training begins again at the end of the data, so that an epoch never ends.
        random_lanes: How many of the training lanes take windows from random places.
        normalize: Whether floating-point inputs and targets are normalized by the mean and the standard deviation that
            each feature has in the training split. They are kept in checkpoints.
        transform: Changes the slices of training sequences; see `SequenceLanes`.
        dtypes: The torch dtype of all floating-point leaves, such as float64; or dtypes by the keys of leaves, which
            also convert integers: `{label: int64}`. Left out: float32, and integers keep their dtype.
        seed: Decides the order, the random places and the generators of `transform`.

    Attributes:
        splits: The datasets by split: train, validation, test.
        normalization: The statistics, known when the first loader is made. None: there is no normalization.

    Raises:
        InputError: Neither `train` nor `path` is given, or both are.
    """

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        *,
        path: DatasetPath | None = None,
        name: str | None = None,
        load_options: dict[str, Any] | None = None,
        inputs: list[str] | str | Callable | None = None,
        targets: list[str] | str | Callable | None = None,
        static: list[str] | str | Callable | None = None,
        mask: str | Callable | None = None,
        lengths: dict[str, Any] | None = None,
        shift: int = 0,
        num_lanes: int = 16,
        k1: int = 64,
        windows_per_batch: int = 1,
        eval_num_lanes: int = 16,
        max_length: int | None = None,
        burn_in: int = 0,
        shuffle: bool = True,
        repeat: bool = False,
        random_lanes: int = 0,
        normalize: bool = False,
        transform: Callable | None = None,
        dtypes: DtypeChoice | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        given = {"train": train, "val": val, "test": test}
        self.splits = {_NAMES[name]: dataset for name, dataset in given.items() if dataset is not None}
        if (path is None) == (not self.splits):
            raise InputError(
                f"data.path={path!r}"
                + (" with train, val or test: give one of them" if path else ": give a path, or datasets as train, ...")
            )
        if num_lanes < 1 or eval_num_lanes < 1:
            raise InputError(f"data.num_lanes={num_lanes}, data.eval_num_lanes={eval_num_lanes}: must be 1 or more")
        for setting, value in (("shuffle", shuffle), ("repeat", repeat), ("normalize", normalize)):
            if not isinstance(value, bool):
                raise InputError(f"data.{setting}={value!r}: must be True or False")
        try:
            Dtypes(dtypes)
        except InputError as error:
            raise InputError(f"data.{error}") from error
        if lengths is not None and not isinstance(lengths, dict):
            raise InputError(f"data.lengths={lengths}: must be a dictionary by split, such as {{'train': [40, 13]}}")
        for name in lengths or ():
            if given.get(name) is None:
                raise InputError(f"data.lengths: no dataset {name!r} is given; name train, val or test")
        self._lengths = {_NAMES[name]: numbers for name, numbers in (lengths or {}).items()}
        self.path = None if path is None else os.fspath(path)
        self.name, self.load_options = name, dict(load_options or {})
        selectors: dict[str, Selector | None] = {"inputs": inputs, "targets": targets, "static": static, "mask": mask}
        self._reading: dict[str, Any] = {**selectors, "shift": shift, "dtypes": dtypes}
        self._sizes = {"k1": k1, "windows_per_batch": windows_per_batch}
        self.num_lanes, self.eval_num_lanes, self.burn_in = num_lanes, eval_num_lanes, burn_in
        self._training: dict[str, Any] = {
            "max_length": max_length,
            "shuffle": shuffle,
            "repeat": repeat,
            "random_lanes": random_lanes,
            "seed": seed,
        }
        self.transform = transform
        self._sources: dict[str, SequenceSource] = {}
        self.normalize = normalize
        self.normalization: Normalization | None = None
        self._from_checkpoint = False

    @property
    def _rank(self) -> Rank:
        return Rank() if self.trainer is None else rank_of(self.trainer)

    def prepare_data(self) -> None:
        """Downloads and converts the dataset of `path`, in one process of each machine."""
        self._load()

    def setup(self, stage: str) -> None:
        """Opens the datasets, and reports on the lanes of training.

        Raises:
            InputError: A split is missing, or a dataset does not fit.
        """
        self.splits = self._load()
        needed = _SPLITS[stage]
        if needed not in self.splits:
            raise InputError(f"data: there is no {needed} split, only {', '.join(self.splits)}")
        if stage == "fit":
            with _of_split("train"):
                lanes = self._training_lanes(None)
                next(iter(lanes))  # what is wrong with the items is said before anything is trained
            rank_zero_info(report(lanes))
            if lanes.repeat and self.trainer is not None and not _has_end(self.trainer):
                rank_zero_warn(
                    "data.repeat=True: the epoch never ends, so neither does this run, unless a callback stops it; set "
                    "trainer.max_steps or trainer.max_time, and trainer.val_check_interval to validate"
                )

    def has_split(self, split: str) -> bool:
        """Returns whether there is such a split: train, validation or test. Known after `setup`."""
        return split in self.splits

    def train_dataloader(self) -> SequenceLanes:
        with _of_split("train"):
            return self._training_lanes(self._statistics())

    def val_dataloader(self) -> SequenceLanes | list[SequenceLanes]:
        if "validation" in self.splits:
            return self.evaluation_dataloader("validation")
        # Lightning takes an empty list for "nothing to validate on", and warns about its length.
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> SequenceLanes:
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> SequenceLanes:
        """Returns a split, `train`, `validation` or `test`, in the lanes of evaluations."""
        with _of_split(split):
            source = self._source(split)
            # Every sequence begins with a reset, so the number of lanes changes no metric of a static evaluation.
            num_scored = int((source.lengths > self.burn_in).sum())
            num_lanes = max(1, min(self.eval_num_lanes, num_scored))
            return SequenceLanes(source, num_lanes, **self._options(self._statistics()))

    def predict_dataloader(self) -> SequenceLanes:
        """Returns the lanes of the test split."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Returns the statistics of the training split, which an evaluation of a checkpoint uses again."""
        state: dict[str, Any] = {"normalize": self.normalize}
        if self.normalization is not None:
            state["statistics"] = {place: list(pair) for place, pair in self.normalization.statistics.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the statistics of a checkpoint.

        Raises:
            InputError: A run is resumed that had another `normalize`.
        """
        theirs = state_dict.get("normalize", self.normalize)
        if theirs != self.normalize and self._fits():
            raise InputError(
                f"data.normalize={self.normalize}, where the run to be resumed has data.normalize={theirs}: a resumed "
                "run cannot change it; keep it, or start a new run from these weights"
            )
        pairs = state_dict.get("statistics", {}).items()
        self.normalization = Normalization({place: (mean, std) for place, (mean, std) in pairs}) if pairs else None
        self._from_checkpoint = True

    def _fits(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "fit"

    def _load(self) -> dict[str, Any]:
        if self.path is None or self.splits:
            return self.splits
        from lit_tbptt.data.sequences.files import load_sequences  # datasets takes a second to import

        return load_sequences(self.path, self.name, self.load_options)

    def _training_lanes(self, normalization: Normalization | None) -> SequenceLanes:
        return SequenceLanes(self._source("train"), self.num_lanes, **self._options(normalization), **self._training)

    def _options(self, normalization: Normalization | None) -> dict[str, Any]:
        return {**self._sizes, "burn_in": self.burn_in, "normalization": normalization, "rank": self._rank}

    def _source(self, split: str) -> SequenceSource:
        if split not in self._sources:
            transform = self.transform if split == "train" else None
            reading = self._reading | {"transform": transform, "lengths": self._lengths.get(split)}
            self._sources[split] = SequenceSource(self.splits[split], rank=self._rank, **reading)
        return self._sources[split]

    def _statistics(self) -> Normalization | None:
        if self._from_checkpoint and self._fits() and self.trainer.ckpt_path is None:
            self._from_checkpoint, self.normalization = False, None  # it was of an evaluation before
        if self.normalize and self.normalization is None and (self._fits() or not self._from_checkpoint):
            if "train" not in self.splits:
                raise InputError("data.normalize=True: the statistics are of a training split, and there is none")
            source = self._source("train")
            parts = self._rank.gather(measure(source, self._rank.share(len(source.lengths))))
            made = Normalization.from_moments(parts).statistics
            if self._rank.num_ranks > 1:
                made = self.trainer.strategy.broadcast(made)
            self.normalization = Normalization(made)
        return self.normalization


def _has_end(trainer: Trainer) -> bool:
    limited = isinstance(trainer.limit_train_batches, int)
    return trainer.max_steps >= 0 or limited or any(isinstance(each, Timer) for each in trainer.callbacks)


@contextmanager
def _of_split(split: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"data ({split}): {error}") from error


def report(lanes: SequenceLanes) -> str:
    """Describes the sequences, and what of the lanes' time steps is padding."""
    lengths, pieces = lanes.source.lengths, lanes.pieces
    unscored = int(lengths.sum()) - pieces.num_targets
    short = int((lengths <= lanes.burn_in).sum())
    burn_in = lanes.burn_in * len(pieces.starts) / int(pieces.num_time_steps.sum())
    return (
        f"{len(lengths):,} sequences of {int(lengths.min()):,} to {int(lengths.max()):,} time steps, "
        f"{int(lengths.sum()):,} in all, in {len(pieces.sequences):,} pieces\n"
        f"{lanes.num_lanes:,} lanes; windows of {lanes.k1:,} time steps; {100 * lanes.padding:.1f} % padding"
        + (f"; {100 * burn_in:.1f} % burn-in, {unscored:,} time steps are never scored" if lanes.burn_in else "")
        + (f"\n{short:,} sequences are not longer than burn_in={lanes.burn_in} and are never scored" if short else "")
    )
