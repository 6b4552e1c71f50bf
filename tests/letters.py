"""Corpora of a few letters, and their lanes as lists and as text."""

import numpy as np
from datasets import Dataset

from lit_tbptt import StreamedLanes, StridedLanes, Tokenizer
from lit_tbptt.data import document_stream

UNEVEN = ["ab", "cdefghijklmnop", "", "q", "rs", "ttttttttt", "uvw", "xyz"]


class Letters(Tokenizer):
    """The letters from a on are 1, 2, 3 ..., however many there are; `<eos>` is 0."""

    name, vocabulary_size, eos = "letters", 1000, 0

    def encode(self, texts):
        return [np.array([ord(letter) - 96 for letter in text], np.int64) for text in texts]

    def decode(self, ids):
        return "".join(chr(96 + i) if i else "\n" for i in ids)

    def describe(self):
        return {"name": self.name}


def corpus(*texts):
    """A dataset of these texts."""
    return Dataset.from_dict({"text": list(texts)})


def stream_of(texts, num_shards=1):
    """A stream of texts in shards of neighbours."""
    return document_stream(Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards), "train")


def streamed(texts, num_lanes, k1, windows_per_batch=1, num_shards=1, **options):
    """The streamed lanes of some texts."""
    return StreamedLanes(stream_of(texts, num_shards), Letters(), num_lanes, k1, windows_per_batch, **options)


def strided(texts, num_lanes, k1, windows_per_batch=1, **options):
    """The strided lanes of some texts."""
    documents = [ids for ids in Letters().encode_documents(texts) if len(ids)]
    ends = np.cumsum([len(ids) for ids in documents])
    return StridedLanes(np.concatenate(documents), 0, num_lanes, k1, windows_per_batch, document_ends=ends, **options)


def as_lists(batches):
    """Every window as (inputs, targets, reset, mask) in plain lists, by batch."""
    return [
        [tuple(None if part is None else part.int().tolist() for part in window[:4]) for window in batch.windows]
        for batch in batches
    ]


def drawn(lanes):
    """Every lane as text: its targets in windows, `$` for `<eos>`, `.` where nothing is scored, `|` before a reset."""
    rows = [""] * len(lanes.local_lanes)
    for batch in lanes:
        for window in batch.windows:
            mask, reset = window.mask_or_ones(), window.reset
            for lane, targets in enumerate(window.targets):
                letters = Letters().decode(targets.tolist()).replace("\n", "$")
                scored = "".join(a if m else "." for a, m in zip(letters, mask[lane].tolist(), strict=True))
                rows[lane] += ("|" if reset is not None and reset[lane] else " ") + scored
    return rows
