"""The torchmetrics metrics of a task: what they must be, what they are updated with, and what is logged of them."""

import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torchmetrics import Metric, MetricCollection

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Window


def check_metrics(metrics: Any, num_ranks: int) -> None:
    """Checks that metrics can be updated and reduced.

    Raises:
        InputError: They are no metric and no collection, or one keeps a list, of which every rank would have another
            number of values.
    """
    if not isinstance(metrics, Metric | MetricCollection):
        raise InputError(
            f"evaluation_metrics is a {type(metrics).__name__}: give one torchmetrics metric, or several as "
            "torchmetrics.MetricCollection({name: metric})"
        )
    listing = [
        type(metric).__name__
        for metric in metrics.modules()
        if isinstance(metric, Metric) and any(isinstance(state, list) for state in metric._defaults.values())
    ]
    if listing and num_ranks > 1:
        raise InputError(
            f"evaluation_metrics: {', '.join(listing)} keeps a list of all values, of which every process would have "
            "another number; use metrics whose states are sums, such as a binned version, or one process"
        )


def update_metrics(metrics: Metric | MetricCollection, outputs: Any, window: Window, rows: Tensor | None) -> None:
    """Calls `update` with the scored time steps of a window; see `Evaluation.update_metrics`.

    Args:
        metrics: A metric, or a collection.
        outputs: A pytree of `[lane, time, ...]`.
        window: The window that is being scored.
        rows: `[lane, time, 2]`, the numbers of the sequence and of the time step in it. None: not known.
    """
    mask = window.mask_or_ones()
    if not bool(mask.any()):  # many metrics do not take empty tensors
        return
    scored, targets = (
        None if part is None else tree_map(lambda leaf: leaf[mask], part) for part in (outputs, window.targets)
    )
    for metric in _each(metrics):
        of_rows = {"rows": rows.to(mask.device)[mask]} if rows is not None and _takes_rows(metric) else {}
        metric.update(scored, targets, **of_rows)


def metric_values(metrics: Metric | MetricCollection, num_targets: float) -> dict[str, float]:
    """Returns what is logged of metrics, reduced over ranks: numbers by name, of larger tensors one per element.

    Args:
        metrics: A metric, which is named by its class unless it computes a dictionary, or a collection.
        num_targets: The number of targets of all ranks. Without any, a metric that was never updated is NaN.

    Raises:
        InputError: A metric computes something else than tensors and numbers.
    """
    if not num_targets and not any(metric.update_called for metric in _each(metrics)):
        names = metrics.keys() if isinstance(metrics, MetricCollection) else [type(metrics).__name__]
        return dict.fromkeys(map(str, names), math.nan)
    with warnings.catch_warnings():
        # Other ranks may have updated it.
        warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before the ``update`` method")
        if isinstance(metrics, MetricCollection):  # whose own `compute` drops the key of a metric of a dictionary
            values: Any = {}
            for key, metric in metrics.items():
                value = metric.compute()
                inner = value.items() if isinstance(value, Mapping) else ()
                values |= {f"{key}_{name}": each for name, each in inner} or {key: value}
        else:
            values = metrics.compute()
    if not isinstance(values, Mapping):
        values = {type(metrics).__name__: values}
    return {name: number for key, value in values.items() for name, number in _numbers(str(key), value)}


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if not isinstance(value, Tensor | float | int):
        raise InputError(
            f"evaluation_metrics: {name} computes a {type(value).__name__}, which cannot be logged: numbers, tensors, "
            "and dictionaries of them can; for a curve, use the area under it"
        )
    numbers = torch.as_tensor(value)
    for place in product(*map(range, numbers.shape)):
        yield "_".join([name, *map(str, place)]), float(numbers[place])


def _each(metrics: Metric | MetricCollection) -> list[Metric]:
    return list(metrics.values(copy_state=False)) if isinstance(metrics, MetricCollection) else [metrics]


def _takes_rows(metric: Metric) -> bool:
    """Returns whether `update` has an argument `rows`, also that of a metric in a wrapper, which passes it on."""
    inner = (each for each in metric.modules() if isinstance(each, Metric))
    return any("rows" in each._update_signature.parameters for each in inner)
