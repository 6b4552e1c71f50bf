"""Reads datasets of sequences that can be indexed: the length of each sequence, and any stretch of it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from lit_tbptt.data.sequences.arrow import ArrowSequences
from lit_tbptt.data.sequences.contents import contents
from lit_tbptt.data.sequences.dataset import check_dataset, reading
from lit_tbptt.data.sequences.dtypes import DtypeChoice, Dtypes
from lit_tbptt.data.sequences.kinds import Kinds, as_mask, check_static, has_length, kind_of, path_name, whole_numbers
from lit_tbptt.data.sequences.leaves import (
    Key,
    Selector,
    all_keys,
    as_dicts,
    call,
    first_size,
    flatten,
    has_names,
    is_list,
    keys_of,
    map_leaves,
    num_time_steps,
    select,
    slice_item,
)
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank


class Stretch(NamedTuple):
    """Some time steps of a sequence.

    Attributes:
        inputs: `[time, ...]` leaves.
        targets: `[time, ...]` leaves, or None.
        mask: `[time]` bool, false where the item says that nothing is scored. None: everything is.
    """

    inputs: Any
    targets: Any
    mask: Tensor | None


class SequenceSource:
    """Reads a dataset of sequences.

    Args:
        dataset: Has `len` and an index; an item is a dictionary or a tuple of leaves `[time, ...]`, which have a shape
            and can be sliced: tensors, arrays, memory maps, datasets of h5py or zarr; or a single leaf.
        inputs: Which leaves are the inputs. None: the key `inputs` of a dictionary, the first leaf of a tuple, or the
            single one.
        targets: Which are the targets. None: those of the key `targets`, or the second leaf of a tuple, if there is one
            and there is no `shift`.
        static: Which leaves have no time axis, but belong to the whole sequence. None: there are none.
        mask: Which leaf is true where the target counts: bool, or integers 0 and 1. None: there is none.
        shift: The targets are the inputs this number of time steps later, so that a sequence of T time steps has
            T - shift targets. 0: they are leaves of their own.
        lengths: The time steps of every item. None: they are found out by opening each item once.
        dtypes: The dtype of all floating-point leaves, or its name; or dtypes by the keys of leaves, which also convert
            integers. Left out: float32, and integers keep their dtype.
        transform: Called as `transform(slice, generator)` with the dictionary of the leaves that are read, before
            `inputs` and the others are taken from it; the generator is the same for every slice of a sequence.
        rank: The rank of this process; each opens its share of the items to find their lengths.

    Attributes:
        lengths: `[sequence]` time steps that have a target.
        has_mask: Whether items say where a target counts.

    Raises:
        InputError: There is no item, an item has no such leaf or is empty, or the arguments contradict each other.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        inputs: Selector | None = None,
        targets: Selector | None = None,
        static: Selector | None = None,
        mask: Selector | None = None,
        shift: int = 0,
        lengths: Sequence[int] | None = None,
        dtypes: DtypeChoice | None = None,
        transform: Callable[[Any, torch.Generator], Any] | None = None,
        rank: Rank | None = None,
    ) -> None:
        if shift < 0:
            raise InputError(f"shift={shift}: must be 0 or more")
        if shift and targets is not None:
            raise InputError(
                f"shift={shift} with targets={targets!r}: shifted inputs are the targets; give one of them"
            )
        check_dataset(dataset)
        self.dataset = ArrowSequences(dataset) if hasattr(dataset, "with_format") else dataset
        self.shift = shift
        self.dtypes = Dtypes(dtypes)
        self._convert = self.dtypes.of_key if self.dtypes.by_key else None
        self.transform = transform
        self._static, self._mask = static, mask
        self.has_mask = mask is not None
        self._inputs, self._targets = self._choose(inputs, targets)
        self._static_keys = keys_of(static) or []
        wanted = keys_of(self._inputs, self._targets, mask)
        self._keys = None if transform is not None else wanted
        unknown = set(self.dtypes.by_key).difference(all_keys(self.item(0)) if self.dtypes.by_key else ())
        if unknown:
            raise InputError(
                f"dtypes: there is no leaf {min(unknown, key=str)!r}: item 0 has the keys {all_keys(self.item(0))}"
            )
        self._static_kinds: list[Any] = []
        self._kinds = Kinds()
        self._given = lengths is not None
        steps = self._count(rank or Rank()) if lengths is None else whole_numbers(lengths)
        if len(steps) != len(dataset):
            raise InputError(f"lengths: {len(steps)} numbers for {len(dataset)} items: give one for each")
        short = np.flatnonzero(steps <= shift)
        if len(short):
            number = int(short[0])
            raise InputError(
                f"item {number} has {steps[number]} time steps, and with shift={shift} no target"
                + (f" ({len(short)} such items)" if len(short) > 1 else "")
                + ": leave it out of the dataset"
            )
        self.lengths = steps - shift

    @cached_property
    def contents(self) -> str:
        """A checksum of some of the contents; see `contents.py`."""
        return contents(self)

    def item(self, number: int) -> Any:
        """Opens an item; a single leaf becomes a tuple of one.

        Raises:
            InputError: The dataset raises an error, or the item is of another kind.
        """
        try:
            item: Any = self.dataset[number]
        except Exception as error:
            raise InputError(f"item {number} cannot be read: {type(error).__name__}: {error}") from error
        several = has_names(item) or isinstance(item, tuple) or (is_list(item) and not isinstance(item[0], float | int))
        return item if several else (item,)

    def open(self, number: int) -> Any:
        """Opens an item that is to be read.

        Raises:
            InputError: As for `item`; or its leaves have another number of time steps than `lengths` says.
        """
        item, expected = self.item(number), int(self.lengths[number]) + self.shift
        present = all_keys(item)
        wanted = present if self._keys is None or callable(self._static) else [*self._keys, *self._static_keys]
        with reading(number):
            if has_names(item) and set(wanted) <= set(present):
                item = {key: as_dicts(item[key]) for key in wanted}  # once, where a name is a read or an array to open
            found = [
                (key, num_time_steps(leaf))
                for key in (present if self._keys is None else self._keys)
                if key in present and key not in self._static_keys
                for leaf in tree_leaves(item[key], is_leaf=is_list)
            ]
        key, wrong = next(((key, length) for key, length in found if length != expected), (None, expected))
        # A function may use leaves without a time axis: then only lengths that no leaf has are known to be wrong.
        if self._given and wrong != expected and all(length != expected for _, length in found):
            raise InputError(
                f"item {number}: lengths[{number}]={expected}, and its leaf {key!r} has {wrong} time steps: correct "
                "lengths, or leave it out"
            )
        if self._keys is not None and wrong != expected:
            raise InputError(
                f"item {number}: the leaf {key!r} has {wrong} time steps where {expected} are expected: "
                "all leaves with a time axis must have the same length; name the others as static"
            )
        return item

    def read(self, item: Any, number: int, start: int, stop: int, generator: torch.Generator | None) -> Stretch:
        """Reads some time steps of an item.

        Args:
            item: What `open` returned.
            number: Its number.
            start: The first time step.
            stop: The one after the last; that of the last target is `shift` later.
            generator: For `transform`.

        Raises:
            InputError: The leaves have other lengths, kinds or shapes than those of other items.
        """
        keys = int(self.lengths[number]) + self.shift if self._keys is None else self._keys
        wanted, times = stop - start + self.shift, slice(start, stop + self.shift)
        with reading(number):
            source, read = f"item {number}", item
            try:
                part = slice_item(item, times, self._static_keys, keys, self._convert)
                if self.transform is not None and generator is not None:
                    part = call("transform", self.transform, part, generator)
                    source, read = f"item {number}: what transform returned", part
                inputs = select("inputs", self._inputs, part)
                targets = None if self._targets is None else select("targets", self._targets, part)
                mask = None if self._mask is None else select("mask", self._mask, part)
            except InputError as error:
                raise InputError(f"item {number}: {error}") from error
            except (KeyError, IndexError) as error:
                raise InputError(f"{source} has no {error}: its keys are {all_keys(read)}") from error
            except (TypeError, ValueError) as error:
                raise InputError(f"item {number}: a leaf cannot be read as a tensor ({error})") from error
        for name, value in (("inputs", inputs), ("targets", targets), ("mask", mask)):
            if value is not None and not all(has_length(leaf, wanted) for leaf in flatten(value)):
                path, leaf = next(each for each in tree_flatten_with_path(value)[0] if not has_length(each[1], wanted))
                found = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise InputError(
                    f"item {number}: {name}{path_name(path)} has {found} for the {wanted} time steps from {start} on: "
                    "all leaves with a time axis must have the same length; name the others as static"
                )
        mask = None if mask is None else as_mask(mask, number)
        if self.shift:
            targets = map_leaves(lambda leaf: leaf[self.shift :], inputs)
            inputs = map_leaves(lambda leaf: leaf[: -self.shift], inputs)
            mask = None if mask is None else mask[self.shift :]
        stretch = Stretch(inputs, targets, mask)
        self._kinds.check(number, {"inputs": inputs, "targets": targets})
        return stretch

    def static(self, item: Any, number: int) -> Any:
        """Returns the leaves of an item that have no time axis. None: there are none."""
        if self._static is None:
            return None
        try:
            keys = all_keys(item) if callable(self._static) else self._static_keys
            part = slice_item(item, slice(0), keys, keys, self._convert)
            found = map_leaves(self.dtypes.of_window, select("static", self._static, part))
        except InputError as error:
            raise InputError(f"item {number}: {error}") from error
        except (KeyError, IndexError) as error:
            raise InputError(f"item {number} has no {error}: its keys are {all_keys(item)}") from error
        kinds = [kind_of(leaf, 0) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in flatten(found)]
        if any(isinstance(kind, str) for kind in kinds) or kinds != (self._static_kinds or kinds):
            raise InputError(
                f"item {number}: its static leaves are {kinds}, where those of the items before are "
                f"{self._static_kinds}: they must be numbers or arrays of the same shapes"
            )
        self._static_kinds = kinds
        check_static(number, found)
        return found

    def _choose(self, inputs: Selector | None, targets: Selector | None) -> tuple[Selector, Selector | None]:
        if inputs is not None and (targets is not None or self.shift):
            return inputs, targets
        keys = all_keys(self.item(0))
        if inputs is None:
            inputs = next((key for key in ("inputs", 0) if key in keys), None)
            if inputs is None:
                raise InputError(f"inputs=None, and item 0 has the keys {keys}: name those that are inputs")
        if targets is None and not self.shift:
            targets = next((key for key in ("targets", 1) if key in keys and key != inputs), None)
        return inputs, targets

    def _count(self, rank: Rank) -> np.ndarray:
        if isinstance(self.dataset, ArrowSequences):
            key = self._temporal_key(self.dataset[0])
            if key not in self.dataset[0]:
                raise InputError(f"the dataset has no column {key!r}: its columns are {list(self.dataset[0])}")
            return self.dataset.num_time_steps(str(key))
        counts = [self._length(number) for number in rank.share(len(self.dataset))]
        shares = [len(Rank(other, rank.num_ranks).share(len(self.dataset))) for other in range(rank.num_ranks)]
        padded = counts + [0] * (max(shares) - len(counts))
        gathered = rank.all_gather(padded)
        return np.array([one for row, share in zip(gathered, shares, strict=True) for one in row[:share]], np.int64)

    def _length(self, number: int) -> int:
        item = self.item(number)
        key = self._temporal_key(item)
        found = first_size(item[key]) if key in all_keys(item) else None
        if found is None:
            raise InputError(f"item {number} has no leaf {key!r} of time steps: it has {all_keys(item)}")
        return found

    def _temporal_key(self, item: Any) -> Key:
        for selector in (self._inputs, self._targets, self._mask):
            keys = keys_of(selector)
            if keys:
                return keys[0]
        others = [key for key in all_keys(item) if key not in self._static_keys]
        sizes = {key: first_size(item[key]) for key in others}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"lengths=None, and the leaves of an item have the first sizes {sizes}, of which functions do not say "
                "what is time: give lengths, or name the static leaves by their keys"
            )
        return others[0]
