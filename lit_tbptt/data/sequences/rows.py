"""The rows of windows: reads the current time steps of each lane, pads them and stacks them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map, tree_structure, tree_unflatten

from lit_tbptt.data.sequences.dtypes import Dtypes
from lit_tbptt.data.sequences.kinds import is_finite, path_name, value_name
from lit_tbptt.data.sequences.leaves import flatten, map_leaves
from lit_tbptt.data.sequences.source import SequenceSource, Stretch
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Window


class Held(NamedTuple):
    """What a lane holds in a window.

    Attributes:
        longest: The window's time steps.
        sequence: The number of the sequence.
        start: The first of its time steps; where the lane is dry, the one after its last.
        num_time_steps: How many there are; 0 where the lane is dry.
        done: Time steps since the reset.
    """

    longest: int
    sequence: int
    start: int
    num_time_steps: int
    done: int


class Rows:
    """Reads the rows of windows, and keeps the items of the lanes open.

    Attributes:
        held: `[lane, 3]`, what `Batch.rows` says of the last window.
    """

    def __init__(
        self, source: SequenceSource, seed: int, epoch: int, normalization: Callable[[Window], Window] | None
    ) -> None:
        self.source = source
        self.seed, self.epoch = seed, epoch
        self.normalization = normalization
        self._items: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        self.held = torch.zeros(0, 3, dtype=torch.int64)

    def window(self, lanes: Sequence[Held], burn_in: int) -> Window:
        """Reads the window of some lanes."""
        for lane in lanes:
            self._open(lane.sequence)
        while len(self._items) > 2 * max(1, len(lanes)):
            self._items.popitem(last=False)
        self.held = torch.tensor(
            [(lane.sequence, lane.start, lane.num_time_steps) if lane.num_time_steps else (-1, 0, 0) for lane in lanes],
            dtype=torch.int64,
        ).view(-1, 3)
        if not lanes:
            return Window(torch.zeros(0, 1), None)
        stretches = [self._stretch(lane) for lane in lanes]
        longest = lanes[0].longest
        scored = torch.zeros(len(lanes), longest, dtype=torch.bool)
        for row, lane, stretch in zip(scored, lanes, stretches, strict=True):
            row[max(0, burn_in - lane.done) : lane.num_time_steps] = True
            if stretch.mask is not None:
                row[: lane.num_time_steps] &= stretch.mask[: lane.num_time_steps]
        targets = None
        if stretches[0].targets is not None:
            targets = _stack([each.targets for each in stretches], longest, self.source.dtypes)
            self._check_targets(targets, scored, lanes)
            # A missing target would turn the gradient of a loss that multiplies by the mask into NaN.
            targets = map_leaves(lambda leaf: leaf if is_finite(leaf) else leaf.where(leaf.isfinite(), 0.0), targets)
        reset = torch.tensor([lane.done == 0 and lane.num_time_steps > 0 for lane in lanes])
        inputs = _stack([each.inputs for each in stretches], longest, self.source.dtypes)
        _check_inputs(inputs, lanes)
        window = Window(
            inputs,
            targets,
            reset if bool(reset.any()) else None,
            None if bool(scored.all()) else scored,
            self._static(lanes),
        )
        return window if self.normalization is None else self.normalization(window)

    def _open(self, number: int) -> None:
        if number not in self._items:
            item = self.source.open(number)
            self._items[number] = item, self.source.static(item, number)
        self._items.move_to_end(number)

    def _stretch(self, lane: Held) -> Stretch:
        dry = lane.num_time_steps == 0
        start = lane.start - 1 if dry else lane.start
        stop = start + max(1, lane.num_time_steps)
        generator = None
        if self.source.transform is not None:
            numbers = np.random.SeedSequence([self.seed, self.epoch, lane.sequence]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(numbers[0] >> np.uint64(1)))
        return self.source.read(self._items[lane.sequence][0], lane.sequence, start, stop, generator)

    def _static(self, lanes: Sequence[Held]) -> Any:
        parts = [self._items[lane.sequence][1] for lane in lanes]
        return None if parts[0] is None else tree_map(lambda *leaves: torch.stack(leaves), *parts)

    def _check_targets(self, targets: Any, scored: Tensor, lanes: Sequence[Held]) -> None:
        for path, leaf in tree_flatten_with_path(targets)[0]:
            if not is_finite(leaf):
                wrong = ~leaf.isfinite() & scored.view(*scored.shape, *[1] * (leaf.ndim - 2))
                if bool(wrong.any()):
                    row, time = wrong.nonzero()[0, :2].tolist()
                    raise InputError(
                        f"item {lanes[row].sequence}: targets{path_name(path)} is {value_name(leaf[wrong][0])} at time "
                        f"step {lanes[row].start + time + self.source.shift}: give a mask that is false where a target "
                        "is missing"
                    )


def _check_inputs(inputs: Any, lanes: Sequence[Held]) -> None:
    """Refuses NaN and infinity, which would stay in the state of the lane: at unscored time steps too."""
    for path, leaf in tree_flatten_with_path(inputs)[0]:
        if not is_finite(leaf):
            wrong = ~leaf.isfinite()
            row, time = wrong.nonzero()[0, :2].tolist()
            raise InputError(
                f"item {lanes[row].sequence}: inputs{path_name(path)} is {value_name(leaf[wrong][0])} at time step "
                f"{lanes[row].start + time}: it would stay in the state of the lane; fill missing values in the "
                "dataset or in a function of inputs=, which may also return where they are missing, as an input"
            )


def _stack(parts: Sequence[Any], longest: int, dtypes: Dtypes) -> Any:
    """Stacks rows; a shorter one repeats its last time step, because a model could turn zeros into NaN."""
    stacked = []
    for leaves in zip(*map(flatten, parts), strict=True):
        full = [leaf if len(leaf) == longest else _padded(leaf, longest) for leaf in leaves]
        stacked.append(dtypes.of_window(torch.stack(full)))
    return tree_unflatten(stacked, tree_structure(parts[0]))


def _padded(leaf: Tensor, longest: int) -> Tensor:
    return torch.cat([leaf, leaf[-1:].expand(longest - len(leaf), *leaf.shape[1:])])
