"""Compares the bits per byte of a text model with those of general compressors."""

import gzip
import lzma
from collections.abc import Mapping

from datasets import Dataset
from tqdm.auto import tqdm

from lit_tbptt.data.text.documents import texts

# About a minute of xz; larger texts are not compared.
MOST_BYTES = 32 << 20
_PIECE = 1 << 20


def compressor_bits_per_byte(documents: Dataset) -> dict[str, float]:
    """Compresses the documents, joined in order, and returns bits per source byte by compressor."""
    text = b"".join(document.encode() for batch in texts(documents) for document in batch)
    sizes = {"gzip -9": len(gzip.compress(text, 9)), "xz": _xz_size(text)}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def _xz_size(text: bytes) -> int:
    compressor, size = lzma.LZMACompressor(), 0
    # disable=None: not where stderr is no terminal.
    with tqdm(total=len(text), desc="xz", unit="B", unit_scale=True, leave=False, delay=1, disable=None) as bar:
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            size += len(compressor.compress(piece))
            bar.update(len(piece))
    return size + len(compressor.flush())


def comparison_table(bits_per_byte: Mapping[str, float]) -> str:
    """Formats bits per byte, one row for each method."""
    return "\n".join(
        [f"{'test text':20}{'bits per byte':>14}", *(f"{name:20}{bits:14.3f}" for name, bits in bits_per_byte.items())]
    )
