"""The table at the end of a run: the model's bits per byte beside those of general compressors."""

import gzip
import lzma
from collections.abc import Mapping

from datasets import Dataset

from lit_tbptt.data.text.documents import texts

# A minute of xz; beyond, a table is not worth the wait.
MOST_BYTES = 32 << 20


def compressor_bits_per_byte(documents: Dataset) -> dict[str, float]:
    """Compresses the documents, joined in order, and returns bits per source byte by compressor."""
    text = b"".join(document.encode() for some in texts(documents) for document in some)
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def result_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Lays metrics by split out as a table, a row a metric.

    Args:
        results: Metrics by split.
    """
    names = list(dict.fromkeys(name for values in results.values() for name in values))
    lines = [f"{'':20}" + "".join(f"{split:>14}" for split in results)]
    for name in names:
        cells = (values.get(name) for values in results.values())
        lines.append(f"{name:20}" + "".join(f"{'' if cell is None else _number(cell):>14}" for cell in cells))
    return "\n".join(lines)


def comparison_table(bits_per_byte: Mapping[str, float]) -> str:
    """Lays bits per byte by method out as a table."""
    return "\n".join(
        [f"{'test text':20}{'bits per byte':>14}", *(f"{name:20}{bits:14.3f}" for name, bits in bits_per_byte.items())]
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4f}"
