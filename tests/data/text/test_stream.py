"""Streams of documents that cannot be read, or could not be continued."""

import pytest
from datasets import IterableDataset
from letters import Letters
from sources import a_mixture

from lit_tbptt import InputError, StreamedLanes
from lit_tbptt.data import document_stream
from lit_tbptt.data.text.tokenizers import ByteTokenizer


def test_a_shuffle_buffer_is_refused():
    with pytest.raises(InputError, match=r"IterableDataset\.shuffle, whose buffer is lost when a run is resumed"):
        document_stream(a_mixture().shuffle(seed=1, buffer_size=10).select_columns(["text"]), "train")


@pytest.mark.parametrize("value", [None, 7])
def test_a_row_without_text_is_named(value):
    def rows():
        for number in range(1100):  # in two reads
            yield {"body": value if number == 1066 else "abc"}

    stream = document_stream(IterableDataset.from_generator(rows).select_columns(["body"]), "train")
    with pytest.raises(InputError, match=rf"row 1066 of reader 0 of the train split: its column 'body' holds {value}"):
        list(StreamedLanes(stream, Letters(), 2, 3))


def test_a_text_that_is_no_utf8_is_named():
    rows = IterableDataset.from_generator(lambda: iter([{"text": "abc"}, {"text": "a\ud800"}]))
    with pytest.raises(InputError, match=r"one of the 2 rows after row 0 of reader 0 of the train split: .*surrogates"):
        list(StreamedLanes(document_stream(rows, "train"), ByteTokenizer(), 2, 3))
