"""Streamed lanes begin at any batch, whatever they are read from."""

import pytest
from letters import UNEVEN, as_lists, streamed
from sources import SOURCES

from lit_tbptt import StreamedLanes
from lit_tbptt.data import document_stream
from lit_tbptt.data.text.tokenizers import ByteTokenizer


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("options", [{}, {"document_reset": True, "shuffle_seed": 5}, {"repeat": True}])
def test_lanes_begin_at_any_batch(source, options, tmp_path):
    documents = SOURCES[source](tmp_path)["train"].select_columns(["text"])
    stream = document_stream(documents, "train")
    num_readers = 1 if source == "mixture" else 2

    def lanes():
        made = StreamedLanes(stream, ByteTokenizer(), 2, 5, 2, num_readers=num_readers, **options)
        made.set_epoch(2)
        return made

    def some(made):
        return [batch for batch, _ in zip(made, range(20), strict=False)]

    whole = some(lanes())
    assert len(whole) > 4
    for number, batch in enumerate(whole):
        for skip in (0, 1):
            again = lanes()
            again.load_state_dict({"position": batch.position, "skip": skip, "epoch": 2})
            expected = as_lists(whole[number + skip :])
            assert as_lists(some(again))[: len(expected)] == expected, (number, skip)


def test_row_counts_go_on_after_a_resume():
    lanes = streamed(UNEVEN * 3, 2, 4)
    whole = [(batch.position, lanes.num_documents, lanes.num_empty, lanes.bytes_per_token) for batch in lanes]
    again = streamed(UNEVEN * 3, 2, 4)
    again.load_state_dict({"position": whole[3][0], "skip": 0, "epoch": 0})
    next(iter(again))
    assert (again.num_documents, again.num_empty, again.bytes_per_token) == whole[3][1:]
