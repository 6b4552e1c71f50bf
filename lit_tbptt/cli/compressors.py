"""A text model's bits per byte beside those of general compressors."""

import gzip
import lzma
from collections.abc import Mapping

from datasets import Dataset

from lit_tbptt.data.text.documents import texts

# A minute of xz; beyond, a table is not worth the wait.
MOST_BYTES = 32 << 20


def compressor_bits_per_byte(documents: Dataset) -> dict[str, float]:
    """Compresses the documents, joined in order, and returns bits per source byte by compressor."""
    text = b"".join(document.encode() for batch in texts(documents) for document in batch)
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz": len(lzma.compress(text))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def comparison_table(bits_per_byte: Mapping[str, float]) -> str:
    """Formats bits per byte, one row for each method."""
    return "\n".join(
        [f"{'test text':20}{'bits per byte':>14}", *(f"{name:20}{bits:14.3f}" for name, bits in bits_per_byte.items())]
    )
