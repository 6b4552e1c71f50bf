"""Windows of varying length: what is drawn, and the lanes that are cut so."""

import re
from statistics import NormalDist

import numpy as np
import pytest
from letters import as_lists, drawn, streamed, strided

from lit_tbptt import InputError, NormalLengths, Rank, WindowLengths
from lit_tbptt.data.summary import drawn_lengths

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Listed(WindowLengths):
    """Lengths of 3, 5, 1, 8, 2, 3, ...; every epoch begins one later."""

    mean = 4.0

    def __init__(self, lengths=(3, 5, 1, 8, 2)):
        self.lengths = lengths

    def __call__(self, epoch, first, num_windows):
        numbers = np.arange(epoch + first, epoch + first + num_windows)
        return np.array(self.lengths)[numbers % len(self.lengths)]


@pytest.mark.parametrize(
    ("settings", "epoch", "first", "lengths"),
    [
        ({}, 0, 0, [69, 73, 57, 64, 78, 63, 68, 73, 65, 38, 62, 60]),
        ({}, 1, 0, [74, 68, 75, 68, 80, 33, 71, 60, 66, 74, 60, 72]),
        ({}, 0, 1020, [72, 77, 30, 63, 76, 69, 72, 69]),
        ({"seed": 2}, 0, 0, [68, 70, 69, 70, 69, 66, 61, 67, 63, 64, 67, 72]),
        ({"mean": 6, "deviation": 2, "least": 3, "half_probability": 0.0}, 0, 0, [5, 7, 3, 3, 9, 3, 5, 7, 4, 7, 3, 3]),
        ({"deviation": 0, "half_probability": 1.0}, 4, 7, [35, 35, 35]),
    ],
)
def test_the_lengths_of_a_seed_an_epoch_and_a_window(settings, epoch, first, lengths):
    assert NormalLengths(**settings)(epoch, first, len(lengths)).tolist() == lengths


def test_a_length_does_not_depend_on_what_is_drawn_with_it():
    lengths = NormalLengths(9, 3, 2)
    whole = lengths(3, 0, 5000)
    for first, num_windows in ((0, 1), (1023, 1), (1023, 2), (1024, 1024), (17, 3100), (4999, 1), (2048, 0)):
        assert lengths(3, first, num_windows).tolist() == whole[first : first + num_windows].tolist()


def test_lengths_are_distributed_as_those_of_awd_lstm():
    lengths, normal = NormalLengths()(0, 0, 100_000), NormalDist()
    assert lengths.mean() == pytest.approx(0.95 * 69.5 + 0.05 * 34.5, abs=0.1)
    assert (lengths < 52).mean() == pytest.approx(0.05, abs=0.003)
    assert lengths[lengths > 52].std() == pytest.approx(5, abs=0.05)
    assert lengths[lengths < 52].mean() == pytest.approx(34.5, abs=0.3)
    assert (lengths > 75).mean() == pytest.approx(0.95 * (1 - normal.cdf(6 / 5)), abs=0.003)
    least = NormalLengths(20, 5, 17, 0.0)(0, 0, 100_000)
    assert least.min() == 17
    assert (least == 17).mean() == pytest.approx(normal.cdf(-2 / 5), abs=0.005)


@pytest.mark.parametrize(
    ("k1", "said"),
    [
        (90, "windows of 13 to 90 tokens, 67.7 on average; 0 % of 100,000"),
        (80, "windows of 13 to 80 tokens, 67.7 on average; 1.31 % of 100,000"),
        (70, "windows of 13 to 70 tokens, 66.1 on average; 39.9 % of 100,000"),
    ],
)
def test_the_report_has_the_share_of_shortened_windows(k1, said):
    lanes = strided([LETTERS * 9], 2, k1, window_lengths=NormalLengths())
    (line,) = drawn_lengths(lanes)
    assert said in line
    assert f"longer than k1={k1}, the maximum" in line
    assert max(lanes.lengths(0, 0, 100_000)) == min(k1, NormalLengths()(0, 0, 100_000).max())
    assert line.endswith("; 2 windows in the first epoch")
    assert drawn_lengths(strided([LETTERS], 2, 5)) == []
    (line,) = drawn_lengths(streamed([LETTERS], 2, k1, window_lengths=NormalLengths()))
    assert line.endswith("are shortened to it")


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, ["|abc defgh i jklm.", "|nop qrstu v wxyz$"]),
        (1, ["|abcde f ghijkl m.", "|nopqr s tuvwxy z$"]),
    ],
)
@pytest.mark.parametrize("windows_per_batch", [1, 3])
def test_strided_lanes_of_listed_lengths(epoch, expected, windows_per_batch):
    """A window of 8 is shortened to k1 = 6; the last one is what is left of the longer lane, which has 14 tokens."""
    lanes = strided([LETTERS], 2, 6, windows_per_batch, window_lengths=Listed())
    lanes.set_epoch(epoch)
    assert drawn(lanes) == expected


def test_streamed_lanes_of_listed_lengths():
    texts = ["ab", "cdefghijklmnop", "q", "rs", "ttttttttt"]
    lanes = streamed(texts, 2, 6, 2, window_lengths=Listed())
    assert drawn(lanes) == ["|ab$ q$rs$ t tttttt tt $", "|cde fghij k lmnop$ .. ."]


@pytest.mark.parametrize("make", [strided, streamed])
def test_steps_are_multiplied_by_the_length_over_the_mean(make):
    lanes = make([LETTERS], 1, 6, 3, window_lengths=Listed())
    factors = [batch.step_factors for batch in lanes]
    # Of 3, 5, 1; 6 and not 8, 2, 3; 5, 1 and the last one.
    assert factors == [(0.75, 1.25, 0.25), (1.5, 0.5, 0.75), (1.25, 0.25, 0.25)]
    assert [batch.step_factors for batch in make([LETTERS], 1, 6, 3)] == [None, None]


@pytest.mark.parametrize("make", [strided, streamed])
def test_windows_that_are_all_of_k1_are_the_constant_ones(make):
    texts = [LETTERS, "xyz", LETTERS[3:]]
    lanes = make(texts, 3, 5, 2, window_lengths=NormalLengths(5, 0, half_probability=0.0))
    assert as_lists(lanes) == as_lists(make(texts, 3, 5, 2))


@pytest.mark.parametrize("make", [strided, streamed])
def test_a_position_says_the_window_and_the_time_step(make):
    lanes = make([LETTERS, LETTERS], 2, 6, 2, window_lengths=Listed())
    positions = [batch.position for batch in lanes]
    assert [(each["window"], each["time_step"]) for each in positions] == [(0, 0), (2, 8), (4, 15), (6, 20), (8, 26)]
    assert all("time_step" not in batch.position for batch in make([LETTERS, LETTERS], 2, 6, 2))
    # As after other draws: the time step is what counts.
    if make is strided:
        lanes.load_state_dict({"position": {"window": 4, "time_step": 17}, "skip": 0, "epoch": 0})
        assert drawn(lanes)[0] == " rs tuv wxyz$"


@pytest.mark.parametrize("make", [strided, streamed])
def test_any_number_of_batches_is_skipped(make):
    def lanes():
        made = make([LETTERS, LETTERS[4:], LETTERS], 2, 9, 2, window_lengths=NormalLengths(5, 3, 1, seed=3))
        made.set_epoch(2)
        return made

    whole = as_lists(lanes())
    assert len(whole) > 3
    for skip in range(len(whole) + 1):
        again = lanes()
        again.load_state_dict({"position": None, "skip": skip, "epoch": 2})
        assert as_lists(again) == whole[skip:]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_rank_draws_the_same(num_ranks):
    def factors(local_lanes):
        lanes = strided([LETTERS] * 2, 3, 6, 2, window_lengths=NormalLengths(4, 2, 1), local_lanes=local_lanes)
        return [batch.step_factors for batch in lanes]

    whole = factors(None)
    assert len({factor for batch in whole for factor in batch}) > 3
    assert all(factors(Rank(rank, num_ranks).share(3)) == whole for rank in range(num_ranks))


def test_the_number_of_batches_differs_from_epoch_to_epoch():
    lanes = strided([LETTERS * 9], 2, 9, window_lengths=NormalLengths(5, 3, 1))
    assert lanes.num_windows is None
    with pytest.raises(TypeError, match="differs from epoch to epoch"):
        len(lanes)
    numbers = set()
    for epoch in range(4):
        lanes.set_epoch(epoch)
        numbers.add(sum(1 for _ in lanes))
        assert lanes.count_windows() == sum(1 for _ in lanes)
    assert len(numbers) > 1


@pytest.mark.parametrize("num_tokens", [1023, 1024, 1025, 2048, 2049, 5000])
@pytest.mark.parametrize("lengths", [Listed((1,)), Listed((2, 1)), None])
def test_windows_are_counted(num_tokens, lengths):
    lanes = strided(["a" * (num_tokens - 1)], 1, 4, window_lengths=lengths)
    assert lanes.count_windows() == sum(1 for _ in lanes)


@pytest.mark.parametrize("make", [strided, streamed])
@pytest.mark.parametrize("now", [None, NormalLengths(4, seed=2, least=2)])
@pytest.mark.parametrize("before", [None, NormalLengths(4, seed=2, least=2), NormalLengths(4, seed=3, least=2)])
def test_a_resumed_run_cannot_change_them(make, before, now):
    state = make([LETTERS], 2, 6, window_lengths=before).state_dict()
    lanes = make([LETTERS], 2, 6, window_lengths=now)
    if repr(before) == repr(now):
        lanes.load_state_dict(state)
    else:
        with pytest.raises(InputError, match=re.escape(f"where the run to be resumed has window_lengths={before}")):
            lanes.load_state_dict(state)
    if before is None and now is not None:  # as an earlier version wrote it
        del state["fixed"]["window_lengths"]
        with pytest.raises(InputError, match="has window_lengths=None"):
            lanes.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": 0}, "least=0: must be from 1 to mean=70"),
        ({"mean": 4}, "least=5: must be from 1 to mean=4"),
        ({"mean": float("inf")}, "mean=inf"),
        ({"mean": float("nan")}, "mean=nan"),
        ({"deviation": -1}, "deviation=-1: must be 0 or more"),
        ({"half_probability": 1.1}, "half_probability=1.1: must be from 0 to 1"),
        ({"seed": -1}, "seed=-1: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        NormalLengths(**settings)


@pytest.mark.parametrize("make", [strided, streamed])
def test_what_does_not_go_with_drawn_lengths_is_refused(make):
    with pytest.raises(InputError, match=r"^k1=69 with window_lengths=NormalLengths\(mean=70.0, .*maximum.*91"):
        make([LETTERS], 2, 69, window_lengths=NormalLengths())
    with pytest.raises(InputError, match=r"^document_reset=True with window_lengths=NormalLengths\("):
        make([LETTERS], 2, 90, window_lengths=NormalLengths(), document_reset=True)
    with pytest.raises(InputError, match=r"gave a window of 0 time steps"):
        list(make([LETTERS], 2, 9, window_lengths=Listed((3, 0))))
