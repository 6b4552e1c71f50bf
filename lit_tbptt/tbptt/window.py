"""Windows and batches of windows: the data that the training loop receives."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lit_tbptt.errors import InputError

if TYPE_CHECKING:  # a task knows which it gets
    Inputs: TypeAlias = Any
    Targets: TypeAlias = Any
    Static: TypeAlias = Any
else:  # what tests check of every window
    Nested = dict[Any, Any] | tuple[Any, ...]
    Inputs = Shaped[Tensor, "lane time *features"] | Nested
    Targets = Shaped[Tensor, "lane time *target_features"] | Nested | None
    Static = Shaped[Tensor, "lane *static_features"] | Nested | None


class Window(NamedTuple):
    """The next time steps of every lane, which the model processes in one call.

    Attributes:
        inputs: `[lane, time]` token ids, or `[lane, time, ...]` for other data; or such tensors, the leaves, in
            dictionaries and tuples.
        targets: What is to be predicted at each time step, likewise. None: the task needs no targets, or there are
            none, as for a prediction.
        reset: `[lane]` bool, true where a lane is reset to the initial state before this window. None: no lane is.
        mask: `[lane, time]` bool, false where nothing is scored. None: every time step is.
        static: `[lane, ...]`, what belongs to the whole sequence that a lane is in, likewise. None: there is no such
            thing.
    """

    inputs: Inputs
    targets: Targets
    reset: Bool[Tensor, "lane"] | None = None
    mask: Bool[Tensor, "lane time"] | None = None
    static: Static = None

    @property
    def num_lanes(self) -> int:
        return _first_leaf(self.inputs).shape[0]

    @property
    def num_time_steps(self) -> int:
        return _first_leaf(self.inputs).shape[1]

    @property
    def device(self) -> torch.device:
        return _first_leaf(self.inputs).device

    def check(self) -> "Window":
        """Returns the window, after a look at every leaf.

        Raises:
            InputError: A leaf is no tensor, or not of this window's lanes and time steps; the message has its path.
        """
        if isinstance(self.inputs, Tensor):  # its shape is that of the window
            lanes_and_time = self.inputs.shape[:2]
            if len(lanes_and_time) < 2:
                raise InputError(f"inputs has the shape {tuple(self.inputs.shape)}: it must be [lane, time, ...]")
        else:
            lanes_and_time = _check_leaves("inputs", self.inputs, None)
        if self.targets is not None:
            _check_leaves("targets", self.targets, lanes_and_time)
        if self.static is not None:
            _check_leaves("static", self.static, lanes_and_time[:1])
        return self

    def split(self, time_step: int) -> tuple["Window", "Window"]:
        """Splits the window before `time_step`; the reset stays with the first part."""
        first, second = slice(None, time_step), slice(time_step, None)
        return self._part(first, self.reset), self._part(second, None)

    def _part(self, times: slice, reset: Bool[Tensor, "lane"] | None) -> "Window":
        part = itemgetter((slice(None), times))  # of every leaf
        targets = None if self.targets is None else _map(part, self.targets)
        mask = None if self.mask is None else self.mask[:, times]
        return Window(_map(part, self.inputs), targets, reset, mask, self.static)

    def cut(self, places: Iterable[int]) -> Iterator["Window"]:
        """Splits the window before each of the given time steps; those outside the window are ignored."""
        rest, done = self, 0
        for place in sorted(set(places)):
            if done < place < self.num_time_steps:
                part, rest = rest.split(place - done)
                done = place
                yield part
        yield rest

    def pieces(self, num_time_steps: int) -> Iterator["Window"]:
        """Splits the window into pieces of `num_time_steps`; the last one may be shorter."""
        rest = self
        while rest.num_time_steps > num_time_steps:
            piece, rest = rest.split(num_time_steps)
            yield piece
        yield rest

    def map(self, function: Callable[[Tensor], Tensor]) -> "Window":
        """Returns the window with every tensor replaced by what `function` makes of it."""
        return Window(*(None if part is None else _map(function, part) for part in self))

    def to(self, device: torch.device | str) -> "Window":
        """Moves the window to a device; copies to a GPU are asynchronous."""
        non_blocking = torch.device(device).type not in ("cpu", "mps")
        return self.map(lambda leaf: leaf.to(device, non_blocking=non_blocking))

    def with_reset(self, lanes: Bool[Tensor, "lane"]) -> "Window":
        """Adds resets for the lanes where `lanes` is true."""
        return self._replace(reset=lanes if self.reset is None else self.reset | lanes)

    def join(self, later: "Window") -> "Window":
        """Appends a window in which no lane is reset.

        Raises:
            ValueError: `later` has a reset, which cannot be represented inside the joined window.
        """
        if later.reset is not None:
            raise ValueError("a window with resets cannot be joined to the one before it")
        return _cat([self, later], 1, self.reset, later.static)

    @classmethod
    def stack(cls, windows: Sequence["Window"]) -> "Window":
        """Puts the lanes of windows of the same number of time steps below each other."""
        reset = None
        if any(window.reset is not None for window in windows):
            reset = torch.cat([window.reset_or_zeros() for window in windows])
        static = None if windows[0].static is None else _cat_leaves([window.static for window in windows], 0)
        return _cat(windows, 0, reset, static)

    def reset_or_zeros(self) -> Bool[Tensor, "lane"]:
        """Returns the `[lane]` reset; all false if it is None."""
        if self.reset is not None:
            return self.reset
        return torch.zeros(self.num_lanes, dtype=torch.bool, device=self.device)

    def mask_or_ones(self) -> Bool[Tensor, "lane time"]:
        """Returns the `[lane, time]` mask; all true if it is None."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.num_lanes, self.num_time_steps, dtype=torch.bool, device=self.device)

    def describe(self) -> list[Any]:
        """Returns the parts with copies of the tensors on the CPU; of named tuples plain ones, which are safe to read.

        `Window(*description)` is the window again, but for these; `like` gives them their names back.
        """
        return [None if part is None else _plain(part) for part in self]

    def like(self, other: "Window") -> "Window":
        """Returns this window with the types of the tuples in `other`, a window of the same source.

        Raises:
            InputError: The two have other leaves.
        """
        if isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor | None) and self.static is None:
            return self  # as most windows are
        inputs, targets = _like("inputs", self.inputs, other.inputs), _like("targets", self.targets, other.targets)
        return Window(inputs, targets, self.reset, self.mask, _like("static", self.static, other.static))


class Batch(NamedTuple):
    """Up to `windows_per_batch` consecutive windows, and the position of the first one in the data.

    Attributes:
        windows: The windows, in order.
        position: Arrays and plain values from which the source of this batch can start again at exactly this batch. Of
            several processes each keeps what it alone knows under keys of its own: they are united in a checkpoint.
        rows: `[window, lane, 3]`, on the CPU: the number of the sequence that a lane is in, the first of its time steps
            in the window, and how many there are; -1, 0, 0 where the lane is dry. None: the source does not tell.
        scored: By window, whether any lane of any process has a target there; one without is run and takes no optimizer
            step. None: all have, as far as the source knows: the loop does not look at masks, so a loader of your own
            whose masks may leave a whole window without a target sets it.
        scored_here: Whether `scored` is only of the lanes of this process. The loop then asks the other processes, for
            which it must be true as well.
        step_factors: By window, what the learning rate of an optimizer step after it is multiplied by. A step after
            several windows is multiplied by the mean of those that have a target. None: 1.
    """

    windows: tuple[Window, ...]
    position: Mapping[str, Any]
    rows: Int[Tensor, "window lane 3"] | None = None
    scored: tuple[bool, ...] | None = None
    scored_here: bool = False
    step_factors: tuple[float, ...] | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Moves the windows to a device; Lightning calls this for every batch."""
        return self._replace(windows=tuple(window.to(device) for window in self.windows))


# Leaves. A general pytree takes several times as long as a tensor, which most windows are made of.


def _map(function: Callable[[Tensor], Tensor], part: Any) -> Any:
    return function(part) if isinstance(part, Tensor) else tree_map(function, part)


def _first_leaf(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part
    leaves = tree_leaves(part)
    if not leaves or not isinstance(leaves[0], Tensor):
        raise InputError("inputs begins with no tensor: it must be a tensor, or tensors in dictionaries and tuples")
    return leaves[0]


def _cat_leaves(parts: Sequence[Any], axis: int) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), axis)
    return tree_map(lambda *leaves: torch.cat(leaves, axis), *parts)


def _cat(windows: Sequence[Window], axis: int, reset: Tensor | None, static: Any) -> Window:
    mask = None
    if any(window.mask is not None for window in windows):
        mask = torch.cat([window.mask_or_ones() for window in windows], axis)
    targets = None
    if windows[0].targets is not None:
        targets = _cat_leaves([window.targets for window in windows], axis)
    return Window(_cat_leaves([window.inputs for window in windows], axis), targets, reset, mask, static)


def _plain(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.to("cpu", copy=True)
    if isinstance(part, dict):
        return {name: _plain(inner) for name, inner in part.items()}
    return tuple(map(_plain, part))


def _like(path: str, part: Any, other: Any) -> Any:
    if type(part) is type(other) and isinstance(part, Tensor | None):
        return part
    if isinstance(part, dict) and isinstance(other, dict) and part.keys() == other.keys():
        return {name: _like(path, part[name], inner) for name, inner in other.items()}
    if isinstance(part, tuple) and isinstance(other, tuple) and len(part) == len(other):
        leaves = [_like(path, mine, theirs) for mine, theirs in zip(part, other, strict=True)]
        return type(other)(*leaves) if hasattr(other, "_fields") else tuple(leaves)
    raise InputError(
        f"{path} of a window has other leaves than those of the windows before it, whose state is carried on: every "
        "window must be made alike"
    )


def _check_leaves(path: str, part: Any, sizes: torch.Size | None) -> torch.Size:
    """Returns the first sizes of all leaves, which are `sizes` if these are given."""
    if isinstance(part, Tensor):
        axes = 2 if sizes is None else len(sizes)
        if part.ndim < axes or (sizes is not None and part.shape[:axes] != sizes):
            expected = "[lane, time, ...]" if axes == 2 else "[lane, ...]"
            of = "" if sizes is None else f" with {' and '.join(map(str, sizes))}, as inputs has"
            raise InputError(f"{path} has the shape {tuple(part.shape)}: it must be {expected}{of}")
        return part.shape[:axes]
    if not isinstance(part, dict | tuple):
        raise InputError(
            f"{path} is {'None' if part is None else f'a {type(part).__name__}'}: inputs, targets and static are made "
            "of tensors in dictionaries and tuples"
            + ("; pad a list to one tensor, with the number of its items beside it" if isinstance(part, list) else "")
        )
    inner = part.items() if isinstance(part, dict) else enumerate(part)
    for name, leaf in inner:
        sizes = _check_leaves(f"{path}[{name!r}]", leaf, sizes)
    if sizes is None:
        raise InputError(f"{path} is empty: it must have a tensor")
    return sizes
