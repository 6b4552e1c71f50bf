"""Streamed lanes: what lies where, at the ends, with resets, and over ranks."""

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from letters import UNEVEN, Letters, as_lists, drawn, stream_of, streamed
from side_by_side import SideBySide, joined

from lit_tbptt import InputError, Rank, StreamedLanes
from lit_tbptt.data import document_stream, load_documents, make_tokenizer


def test_a_lane_that_has_run_dry_takes_the_next_document():
    lanes = streamed(["ab", "cdef", "g", "hi"], num_lanes=2, k1=3, windows_per_batch=2)
    assert as_lists(lanes) == [
        [
            ([[0, 1, 2], [0, 3, 4]], [[1, 2, 0], [3, 4, 5]], [1, 1], None),
            # Both are dry now, and the first takes what is left.
            ([[0, 7, 0], [5, 6, 0]], [[7, 0, 8], [6, 0, 0]], None, [[1, 1, 1], [1, 1, 0]]),
        ],
        [([[8, 9], [0, 0]], [[9, 0], [0, 0]], None, [[1, 1], [0, 0]])],
    ]
    assert (lanes.num_documents, lanes.num_tokens, lanes.bytes_per_token) == (4, 13, 9 / 13)


def test_there_are_no_bytes_per_token_from_the_first_unknown_token_on():
    texts = ["aba", "bbb", "ab", "axb", "", "b"]
    tokenizer = make_tokenizer("char", ["ab"])
    lanes = StreamedLanes(stream_of(texts), tokenizer, 1, 4)
    seen = [(lanes.num_tokens, lanes.num_bytes, lanes.num_unknown, lanes.bytes_per_token) for _ in lanes]
    known = [(4, 3, 0, 3 / 4), (8, 6, 0, 6 / 8)]
    assert seen == [*known, (15, 11, 1, None), (17, 12, 1, None), (17, 12, 1, None)]
    again = StreamedLanes(stream_of(texts), tokenizer, 1, 4)
    third = [batch.position for batch in lanes][3]
    assert third["groups"][0]["counts"] == [4, 15, 11, 1]
    again.load_state_dict({"position": third, "skip": 0, "epoch": 0})
    assert [(again.num_tokens, again.num_bytes, again.num_unknown) for _ in again] == [(17, 12, 1), (17, 12, 1)]


@pytest.mark.parametrize(
    ("num_readers", "document_reset", "expected"),
    [
        (1, False, ["|ab$ uvw $.. ... ...", "|cde fgh ijk lmn op$", "|q$t ttt ttt tt$ ...", "|rs$ xyz $.. ... ..."]),
        (1, True, ["|ab$|ttt ttt ttt $..", "|cde fgh ijk lmn op$", "|q$.|uvw $.. ... ...", "|rs$|xyz $.. ... ..."]),
        # Readers take every second shard of two documents: ab cd.. rs tt.. and q uvw xyz.
        (
            2,
            False,
            ["|ab$ rs$ ttt ttt ttt $", "|cde fgh ijk lmn op$ .", "|q$x yz$ ... ... ... .", "|uvw $.. ... ... ... ."],
        ),
        (
            2,
            True,
            [
                "|ab$|rs$|ttt ttt ttt $..",
                "|cde fgh ijk lmn op$ ...",
                "|q$.|xyz $.. ... ... ...",
                "|uvw $.. ... ... ... ...",
            ],
        ),
    ],
)
@pytest.mark.parametrize("windows_per_batch", [1, 2, 7])
def test_documents_of_very_unequal_length(num_readers, document_reset, expected, windows_per_batch, caplog):
    options = {"num_shards": 4, "num_readers": num_readers, "document_reset": document_reset}
    lanes = streamed(UNEVEN, 4, 3, windows_per_batch, **options)
    for _ in range(2):
        assert drawn(lanes) == expected
    assert lanes.num_empty == 1
    assert caplog.messages == ["1 empty documents were left out of the train split"]


def test_the_dealing_does_not_depend_on_the_windows():
    rows = [
        "".join(drawn(streamed(UNEVEN, 3, k1, 2, num_shards=4)))[1:].replace(" ", "").replace(".", "") for k1 in (1, 4)
    ]
    assert rows[0] == rows[1]


def test_repeat_starts_again_without_a_gap():
    lanes = streamed(["ab", "c", "def"], num_lanes=2, k1=4, repeat=True)
    batches = iter(lanes)
    assert as_lists([next(batches) for _ in range(3)]) == [
        [([[0, 1, 2, 0], [0, 3, 0, 4]], [[1, 2, 0, 1], [3, 0, 4, 5]], [1, 1], None)],
        [([[1, 2, 0, 3], [5, 6, 0, 4]], [[2, 0, 3, 0], [6, 0, 4, 5]], None, None)],
        [([[0, 1, 2, 0], [5, 6, 0, 3]], [[1, 2, 0, 4], [6, 0, 3, 0]], None, None)],
    ]


def test_shards_come_in_another_order_in_every_epoch():
    texts = [letter * 3 for letter in "abcdefghijklm"]
    lanes = streamed(texts, 1, 4, num_shards=13, shuffle_seed=3)
    seen = []
    for epoch in (0, 1, 0):
        lanes.set_epoch(epoch)
        seen.append(drawn(lanes)[0].replace(" ", "").strip("|"))
    assert seen[0] == seen[2] != seen[1]
    assert all(sorted(order) == sorted("$".join([*texts, ""])) for order in seen)
    assert seen[0] != drawn(streamed(texts, 1, 4, num_shards=13, shuffle_seed=4))[0].replace(" ", "").strip("|")


def test_every_pass_of_a_repeated_stream_has_its_own_order():
    texts = [letter * 3 for letter in "abcdefghijklm"]
    lanes = streamed(texts, 1, 52, num_shards=13, shuffle_seed=3, repeat=True)
    passes = [Letters().decode(batch.windows[0].targets[0].tolist()) for batch, _ in zip(lanes, range(3), strict=False)]
    assert len(set(passes)) == 3
    assert all(sorted(found) == sorted(passes[0]) for found in passes)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_readers", [1, 2, 3, 6])
@pytest.mark.parametrize("document_reset", [False, True])
def test_ranks_together_make_the_same_batches(num_ranks, num_readers, document_reset):
    texts = [chr(97 + i % 26) * (i * i % 17) for i in range(40)]
    options = {"num_shards": 7, "num_readers": num_readers, "document_reset": document_reset}
    lanes = streamed(texts, 6, 4, 2, **options)
    alone = as_lists(lanes)
    shares = [Rank(rank, num_ranks).share(6) for rank in range(num_ranks)]
    every = []

    def make(rank, all_gather):
        every.append(streamed(texts, 6, 4, 2, **options, local_lanes=shares[rank], all_gather=all_gather))
        return every[-1]

    found = SideBySide(num_ranks).run(make)
    for one in every:
        assert (one.num_documents, one.num_tokens, one.num_empty, one.bytes_per_token) == (
            lanes.num_documents,
            lanes.num_tokens,
            lanes.num_empty,
            lanes.bytes_per_token,
        )
    assert [len(batches) for batches in found] == [len(alone)] * num_ranks
    assert joined(found, shares) == joined([alone], [range(6)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_lanes": 0}, "num_lanes=0: must be 1 or more"),
        ({"num_lanes": 4, "num_readers": 3}, "num_readers=3 with num_lanes=4: the readers divide the lanes evenly"),
        ({"num_lanes": 4, "num_readers": 0}, "num_readers=0"),
        ({"num_lanes": 6, "num_readers": 3}, "num_readers=3: the train split has 2 shards .*set num_readers to 2"),
        ({"num_lanes": 2, "local_lanes": range(1, 3)}, "local_lanes="),
    ],
)
def test_lanes_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        streamed(["a", "b", "c"], k1=3, num_shards=2, **options)


def test_a_stream_without_text_is_refused():
    with pytest.raises(InputError, match="the train split has no text: all its documents are empty"):
        list(StreamedLanes(stream_of(["", "", ""]), Letters(), 2, 3))
    with pytest.raises(InputError, match="the train split has no documents"):
        document_stream(IterableDataset.from_generator(lambda: iter(())), "train")
    with pytest.raises(InputError, match="the train split has no documents"):
        load_documents(Dataset.from_dict({"text": []}), streaming=True)


class Silent(Letters):
    """Knows no letter."""

    def encode(self, texts):
        return [np.arange(0)] * len(texts)


def test_a_stream_without_tokens_is_not_repeated_for_ever():
    with pytest.raises(InputError, match="the train split has no text"):
        list(StreamedLanes(stream_of(["a", "b"]), Silent(), 2, 3, repeat=True))
