"""Strided lanes: what lies where, at the ends, with documents, and from any batch on."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from letters import drawn, strided

from lit_tbptt import InputError, StridedLanes

EOS = 99
# a b c d e . . . in documents of 3, 8, 2, 5 and 4 tokens with their <eos>; an empty one has none.
TEXTS = ["ab", "cdefghi", "", "j", "klmn", "opq"]


def table(lanes):
    """Every window as (inputs, targets, reset, mask) in plain lists."""
    return [
        tuple(None if part is None else part.int().tolist() for part in window[:4])
        for batch in lanes
        for window in batch.windows
    ]


def test_two_lanes_of_equal_length():
    assert table(StridedLanes(np.arange(10), EOS, num_lanes=2, k1=3, windows_per_batch=2)) == [
        ([[99, 0, 1], [4, 5, 6]], [[0, 1, 2], [5, 6, 7]], [1, 1], None),
        ([[2, 3], [7, 8]], [[3, 4], [8, 9]], None, None),
    ]


def test_ragged_lanes_are_masked_and_not_dropped():
    # 11 tokens in 3 lanes start at 0, 3 and 7.
    assert table(StridedLanes(np.arange(11), EOS, num_lanes=3, k1=2, windows_per_batch=4)) == [
        ([[99, 0], [2, 3], [6, 7]], [[0, 1], [3, 4], [7, 8]], [1, 1, 1], None),
        ([[1, 2], [4, 5], [8, 9]], [[2, 99], [5, 6], [9, 10]], None, [[1, 0], [1, 1], [1, 1]]),
    ]


@pytest.mark.parametrize("num_tokens", [7, 12, 65])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("k1", "windows_per_batch"), [(1, 1), (2, 3), (5, 2), (70, 1)])
def test_every_token_is_a_target_once_after_the_token_before_it(num_tokens, num_lanes, k1, windows_per_batch):
    ids = np.random.default_rng(3).permutation(num_tokens)
    lanes = StridedLanes(ids, EOS, num_lanes, k1, windows_per_batch)
    before = dict(zip(ids, [EOS, *ids[:-1]], strict=True))
    seen = []
    for batch in lanes:
        assert 1 <= len(batch.windows) <= windows_per_batch
        for window in batch.windows:
            scored = window.mask_or_ones()
            for given, target in zip(window.inputs[scored].tolist(), window.targets[scored].tolist(), strict=True):
                assert before[target] == given
                seen.append(target)
    assert sorted(seen) == sorted(ids)
    assert len(list(lanes)) == len(lanes)


def test_row_i_of_a_window_continues_row_i_of_the_one_before():
    windows = [window for batch in StridedLanes(np.arange(65), EOS, 3, 5, 2) for window in batch.windows]
    for earlier, later in pairwise(windows):
        assert torch.equal(later.inputs[:, 0], earlier.targets[:, -1])
    assert [window.reset is not None for window in windows] == [True] + [False] * (len(windows) - 1)


@pytest.mark.parametrize("skip", [0, 1])
def test_lanes_begin_at_any_batch(skip):
    lanes = StridedLanes(np.arange(65), EOS, 3, 5, 2)
    whole = list(lanes)
    for number, batch in enumerate(whole):
        lanes.load_state_dict({"position": batch.position, "skip": skip, "epoch": 0})
        assert table(lanes) == table(whole[number + skip :])


def test_iterating_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    list(StridedLanes(np.arange(65), EOS, 3, 5, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 1), "num_lanes=0"),
        ((3, 0, 1), "k1=0"),
        ((3, 5, 0), "windows_per_batch=0"),
        ((12, 5, 1), "num_lanes=12 over 11 tokens"),
    ],
)
def test_lanes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        StridedLanes(np.arange(11), EOS, *arguments)


def test_documents_can_begin_with_a_reset():
    # They take 1, 3, 1, 2 and 2 windows of 3 tokens; each of two lanes begins with a document.
    assert drawn(strided(TEXTS, 2, 3, 2, document_reset=True)) == [
        "|ab$|cde fgh i$.|j$.",
        "|klm n$.|opq $.. ...",
    ]
    # A lane whose share lies within one document has nothing.
    assert drawn(strided(["a" * 20, "b"], 3, 4, document_reset=True)) == [
        "|aaaa aaaa aaaa aaaa aaaa $...",
        "|.... .... .... .... .... ....",
        "|b$.. .... .... .... .... ....",
    ]


def test_the_input_at_a_reset_is_eos():
    lanes = strided(TEXTS, 1, 3, document_reset=True)
    inputs = [window.inputs[0].tolist() for batch in lanes for window in batch.windows if window.reset is not None]
    assert [first for first, *_ in inputs] == [0] * 5


def test_epochs_can_begin_elsewhere():
    lanes = strided(TEXTS, 2, 4, rotation_seed=2)
    assert drawn(lanes) == ["|ab$c defg hi$", "|j$kl mn$o pq$"]
    lanes.set_epoch(1)
    # This seed begins epoch 1 at token 6, the f, with the e before it as its input.
    assert drawn(lanes) == ["|fghi $j$k lmn", "|$opq $ab$ cde"]
    assert next(iter(lanes)).windows[0].inputs.tolist() == [[5, 6, 7, 8], [14, 0, 15, 16]]


def test_whole_documents_go_round():
    lanes = strided(TEXTS, 1, 3, document_reset=True, rotation_seed=2)
    lanes.set_epoch(1)
    # From the first document that begins at or after token 6.
    assert drawn(lanes) == ["|j$.|klm n$.|opq $..|ab$|cde fgh i$."]


def test_documents_come_in_another_order_in_every_epoch():
    lanes = strided(TEXTS, 1, 50, shuffle_seed=2)
    orders = []
    for epoch in (0, 1, 2, 1):
        lanes.set_epoch(epoch)
        ((order,), (batch,)) = drawn(lanes), lanes
        assert batch.windows[0].inputs.tolist() == [[0, *batch.windows[0].targets[0, :-1].tolist()]]
        orders.append(order.strip("|"))
    assert orders[1] == orders[3]
    assert len(set(orders)) == 3
    assert all(sorted(order.split("$")) == sorted([*filter(None, TEXTS), ""]) for order in orders)


def test_the_number_of_batches_is_known_where_it_is_always_the_same():
    assert len(strided(TEXTS, 2, 3, 2, document_reset=True)) == 3
    assert len(strided(TEXTS, 2, 3, 2, shuffle_seed=1, rotation_seed=1)) == 2
    with pytest.raises(TypeError, match="differs from epoch to epoch"):
        len(strided(TEXTS, 2, 3, document_reset=True, shuffle_seed=1))


def test_options_that_need_the_documents_say_so():
    with pytest.raises(InputError, match="document_ends=None"):
        StridedLanes(np.arange(11), EOS, 2, 3, document_reset=True)


def test_lanes_that_are_continued_must_be_the_same():
    ids = np.arange(40)
    options = {"document_ends": np.array([7, 40]), "document_reset": True, "shuffle_seed": 3}
    state = StridedLanes(ids, 0, 4, 5, 2, **options).state_dict()
    StridedLanes(ids.copy(), 0, 4, 5, 2, local_lanes=range(1, 3), **options).load_state_dict(state)
    others = {
        r"num_lanes=5, where the run to be resumed has num_lanes=4: a resumed": (ids, 0, 5, 5, 2),
        r"k1=4, where .* has k1=5": (ids, 0, 4, 4, 2),
        r"windows_per_batch=1, where": (ids, 0, 4, 5, 1),
        r"ids=40 ids with checksum [0-9a-f]{8}, where .* has ids=40 ids with checksum": (ids[::-1], 0, 4, 5, 2),
    }
    for message, arguments in others.items():
        with pytest.raises(InputError, match=message):
            StridedLanes(*arguments, **options).load_state_dict(state)
    with pytest.raises(InputError, match="shuffle_seed=4, where"):
        StridedLanes(ids, 0, 4, 5, 2, **options | {"shuffle_seed": 4}).load_state_dict(state)
