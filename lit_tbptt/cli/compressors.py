"""Compares the bits per byte of a text model with those of general compressors."""

import lzma
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

from datasets import Dataset

from lit_tbptt.data.text.documents import texts

# About a minute of xz; larger texts are not compressed.
MOST_BYTES = 32 << 20
AFTER_TRAINING = "xz after training text"
_PIECE = 1 << 20


class Compressors:
    """Compresses a test text in threads of their own, beside the evaluation of the model.

    Args:
        test: The documents, which are joined in order.
        train: Those of the training split. None: there are none to compare with, or too many.
    """

    def __init__(self, test: Dataset, train: Dataset | None = None) -> None:
        self._stopped = Event()
        self._threads = ThreadPoolExecutor(2, "compressor")
        text, before = _text(test), b"" if train is None else _text(train)
        self._num_bytes = len(text)
        self._sizes = {
            "gzip -9": self._start(zlib.compressobj(9, wbits=31), text),  # 31: gzip's header
            "xz": self._start(lzma.LZMACompressor(), text),
        }
        self._after: tuple[Future[int], Future[int]] | None = None
        if before:
            both = before + text
            self._after = tuple(self._start(_far_reaching_xz(len(both)), part) for part in (both, before))  # type: ignore[assignment]

    def bits_per_byte(self) -> dict[str, float]:
        """Returns bits per byte of the test text by compressor.

        `xz after training text` is what the test text adds to the compressed training text.
        """
        try:
            sizes = {name: size.result() for name, size in self._sizes.items()}
            if self._after is not None:
                both, before = self._after
                sizes[AFTER_TRAINING] = both.result() - before.result()
        finally:
            self.stop()
        return {name: 8 * size / self._num_bytes for name, size in sizes.items()}

    def stop(self) -> None:
        """Ends the threads at the next megabyte."""
        self._stopped.set()
        self._threads.shutdown()

    def _start(self, compressor: Any, text: bytes) -> Future[int]:
        return self._threads.submit(self._compressed_size, compressor, text)

    def _compressed_size(self, compressor: Any, text: bytes) -> int:
        size = 0
        for start in range(0, len(text), _PIECE):
            if self._stopped.is_set():
                return 0
            size += len(compressor.compress(text[start : start + _PIECE]))
        return size + len(compressor.flush())


def _text(documents: Dataset) -> bytes:
    return b"".join(document.encode() for batch in texts(documents) for document in batch)


def _far_reaching_xz(num_bytes: int) -> lzma.LZMACompressor:
    """Returns `xz -9e` with a dictionary that reaches back to the beginning of the text, in less memory."""
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(4096, num_bytes)}
    return lzma.LZMACompressor(filters=[options])


def comparison_table(bits_per_byte: Mapping[str, float]) -> str:
    """Formats bits per byte, one row for each method."""
    return "\n".join(
        [f"{'test text':24}{'bits per byte':>14}", *(f"{name:24}{bits:14.3f}" for name, bits in bits_per_byte.items())]
    )
