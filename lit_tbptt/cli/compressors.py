"""Compares the bits per byte of a text model with those of general compressors."""

import lzma
import zlib
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from lit_tbptt.data.progress_bar import progress_bar
from lit_tbptt.data.text.documents import texts

# About a minute of xz; larger texts are not compared.
MOST_BYTES = 32 << 20
_PIECE = 1 << 20


def compressor_bits_per_byte(documents: Dataset) -> dict[str, float]:
    """Compresses the documents, joined in order, and returns bits per source byte by compressor."""
    text = b"".join(document.encode() for batch in texts(documents) for document in batch)
    compressors = {"gzip -9": zlib.compressobj(9, wbits=31), "xz": lzma.LZMACompressor()}  # 31: gzip's header
    return {name: 8 * _compressed_size(text, name, each) / len(text) for name, each in compressors.items()}


def _compressed_size(text: bytes, name: str, compressor: Any) -> int:
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    with progress_bar(pieces, name, len(text), "B") as read:
        return sum(len(compressor.compress(piece)) for piece in read) + len(compressor.flush())


def comparison_table(bits_per_byte: Mapping[str, float]) -> str:
    """Formats bits per byte, one row for each method."""
    return "\n".join(
        [f"{'test text':20}{'bits per byte':>14}", *(f"{name:20}{bits:14.3f}" for name, bits in bits_per_byte.items())]
    )
