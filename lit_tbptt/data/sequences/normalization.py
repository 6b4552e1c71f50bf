"""Means and standard deviations of a training split, by leaf and feature, and windows normalized by them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map_with_path

from lit_tbptt.data.sequences.source import SequenceSource
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.window import Window

_PIECE = 65_536
"""Time steps that are read at once."""


class Moments(NamedTuple):
    """What is known of some values of a leaf, by feature.

    Attributes:
        num_values: How many there are, those that are missing (NaN) left out.
        mean: Their mean.
        squares: The sum of the squares of their differences from it.
    """

    num_values: Tensor
    mean: Tensor
    squares: Tensor

    @property
    def deviation(self) -> Tensor:
        """The standard deviation; 1 where it is that of rounding, because the values are all the same."""
        deviation = (self.squares / self.num_values.clamp(min=1)).sqrt()
        return torch.where(deviation > 1e-12 * self.mean.abs(), deviation, 1.0)

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Measures `[time, ...]` values in float64."""
        values = values.double()
        known = ~values.isnan()
        count = known.sum(0)
        mean = values.where(known, 0.0).sum(0) / count.clamp(min=1)
        return cls(count, mean, torch.where(known, values - mean, 0.0).square().sum(0))

    def with_others(self, other: "Moments") -> "Moments":
        """Returns what is known of both together (Chan, Golub & LeVeque 1983)."""
        count = self.num_values + other.num_values
        difference = other.mean - self.mean
        share = other.num_values.double() / count.clamp(min=1)
        squares = self.squares + other.squares + difference.square() * self.num_values * share
        return Moments(count, self.mean + difference * share, squares)


class Normalization:
    """Subtracts a mean and divides by a standard deviation, each feature of a floating-point leaf by its own.

    A feature that never changes is only shifted. With `shift` the targets are inputs, and have their numbers.

    Args:
        statistics: By the place of a leaf, such as `inputs['x']`, its mean and standard deviation: tensors of the shape
            of one time step.
    """

    def __init__(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.statistics = dict(statistics)

    @classmethod
    def from_moments(cls, parts: Iterable[Mapping[str, tuple[Tensor, ...]]]) -> "Normalization":
        """Makes it from what `measure` returned for parts of the data."""
        totals: dict[str, Moments] = {}
        for part in parts:
            for place, given in part.items():
                moments = Moments(*given)
                totals[place] = totals[place].with_others(moments) if place in totals else moments
        return cls({place: (moments.mean, moments.deviation) for place, moments in totals.items()})

    def __call__(self, window: Window) -> Window:
        """Returns the window with its floating-point leaves normalized, in their dtype."""
        return window._replace(
            inputs=self._normalized("inputs", window.inputs), targets=self._normalized("targets", window.targets)
        )

    def restore(self, values: Any, place: str = "targets") -> Any:
        """Returns values, such as a model's outputs, in the units of the data.

        Args:
            values: `[..., *features]`, one tensor or several, as in the windows.
            place: Of what they are: inputs or targets.

        Raises:
            InputError: They are not nested as in the windows.
        """
        return tree_map_with_path(lambda path, leaf: self._restored(f"{place}{keystr(path)}", leaf), values)

    def _restored(self, place: str, leaf: Tensor) -> Tensor:
        if place not in self.statistics:
            raise InputError(
                f"place={place}: there are no statistics of it, but of {', '.join(self.statistics)}: give values "
                "nested as in the windows"
            )
        mean, deviation = (each.to(leaf) for each in self.statistics[place])
        return leaf * deviation + mean

    def _normalized(self, name: str, part: Any) -> Any:
        if part is None:
            return None

        def normalized(path: Any, leaf: Tensor) -> Tensor:
            given = self.statistics.get(f"{name}{keystr(path)}")
            return leaf if given is None else ((leaf - given[0]) / given[1]).to(leaf.dtype)

        return tree_map_with_path(normalized, part)


def measure(source: SequenceSource, numbers: Iterable[int]) -> dict[str, tuple[Tensor, ...]]:
    """Returns the moments of the floating-point inputs and targets of some sequences, by the place of the leaf.

    Targets that the mask leaves out do not count.

    Args:
        source: Reads the sequences; without a transform, which would be of training only.
        numbers: Which sequences.

    Raises:
        InputError: A value is infinite.
    """
    totals: dict[str, Moments] = {}
    for number in numbers:
        item, length = source.open(number), int(source.lengths[number])
        for start in range(0, length, _PIECE):
            stretch = source.read(item, number, start, min(start + _PIECE, length), None)
            for name, part in (("inputs", stretch.inputs), ("targets", None if source.shift else stretch.targets)):
                for path, leaf in tree_flatten_with_path(part)[0] if part is not None else ():
                    if leaf.is_floating_point():
                        place = f"{name}{keystr(path)}"
                        scored = name == "inputs" or stretch.mask is None  # inputs are run where nothing is scored
                        # Rounded as in the windows: .1 in float32 is far from .1 for a feature that is always .1.
                        values = source.dtypes.of_window(leaf)
                        moments = Moments.of(values if scored else values[stretch.mask])
                        if not bool(moments.mean.isfinite().all()):
                            raise InputError(f"item {number}: {place} has an infinite value: it has no mean")
                        totals[place] = totals[place].with_others(moments) if place in totals else moments
    if source.shift:
        totals |= {f"targets{place.removeprefix('inputs')}": moments for place, moments in totals.items()}
    return {place: tuple(moments) for place, moments in totals.items()}
