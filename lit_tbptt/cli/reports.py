"""The table of metrics printed at the end of a run."""

import math
from collections.abc import Mapping


def result_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Formats metrics, one row each, with a column for each split.

    Args:
        results: Metrics by split.
    """
    names = list(dict.fromkeys(name for values in results.values() for name in values))
    widths = [max(14, len(split) + 2) for split in results]
    lines = [f"{'':20}" + "".join(f"{split:>{width}}" for split, width in zip(results, widths, strict=True))]
    for name in names:
        cells = ("" if name not in values else _number(values[name]) for values in results.values())
        lines.append(f"{name:20}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _number(value: float) -> str:
    if not math.isfinite(value) or abs(value) >= 1e9:
        return f"{value:.4g}"
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"
