"""Lanes of sequences: what they hold, in which order, from where a run goes on, and what they refuse."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from side_by_side import RankAmongThreads, SideBySide
from torch.testing import assert_close

from lit_tbptt import InputError, SequenceLanes
from lit_tbptt.data.lanes.dealing import Pieces
from lit_tbptt.ranks import Rank

SETTINGS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])


def counting(lengths):
    """Sequences that say who they are: time step t of sequence i is 100 i + t, its target the negative."""
    return [
        {"x": torch.arange(n) + 100 * i, "y": -(torch.arange(n, dtype=torch.float64) + 100 * i), "of": 10 * i}
        for i, n in enumerate(lengths)
    ]


def table(lanes):
    """By window the inputs of every lane, a star before those that are not scored, and R where a lane is reset."""
    rows = []
    for batch in lanes:
        for window in batch.windows:
            scored = window.mask_or_ones()
            lines = []
            for lane, resets in enumerate(window.reset_or_zeros().tolist()):
                row = zip(window.inputs[lane].tolist(), scored[lane].tolist(), strict=True)
                lines.append(("R " if resets else "") + " ".join(f"{'' if ok else '*'}{x}" for x, ok in row))
            rows.append(lines)
    return rows


def test_a_lane_that_has_run_dry_takes_the_next_sequence():
    lanes = SequenceLanes(counting([4, 8, 2, 5, 1]), 2, 4, inputs="x", targets="y", static="of")
    assert table(lanes) == [
        ["R 0 1 2 3", "R 100 101 102 103"],
        ["R 200 201 *201 *201", "104 105 106 107"],
        ["R 300 301 302 303", "R 400 *400 *400 *400"],
        ["304", "*400"],
    ]
    windows = [batch.windows[0] for batch in lanes]
    assert [window.static.tolist() for window in windows] == [[0, 10], [20, 10], [30, 40], [30, 40]]
    assert_close(windows[1].targets, -windows[1].inputs.float())
    rows = [batch.rows[0].tolist() for batch in lanes]
    assert rows == [
        [[0, 0, 4], [1, 0, 4]],
        [[2, 0, 2], [1, 4, 4]],
        [[3, 0, 4], [4, 0, 1]],
        [[3, 4, 1], [-1, 0, 0]],
    ]
    assert len(lanes) == 4
    assert lanes.padding == pytest.approx(6 / 26)


def test_shifted_inputs_are_the_targets():
    lanes = SequenceLanes(counting([5, 3]), 2, 3, inputs="x", shift=2)
    (first,) = (batch.windows[0] for batch in lanes)
    assert first.inputs.tolist() == [[0, 1, 2], [100, 100, 100]]
    assert first.targets.tolist() == [[2, 3, 4], [102, 102, 102]]
    assert first.mask.tolist() == [[True] * 3, [True, False, False]]


def test_long_sequences_are_cut_and_run_in():
    lanes = SequenceLanes(counting([9, 2, 6]), 2, 3, inputs="x", max_length=4, burn_in=2)
    # 0..3, 2..7, 6..8 of the first; nothing of the second; 0..3 and 2..5 of the third.
    assert table(lanes) == [
        ["R *0 *1 2", "R *2 *3 4"],
        ["3 *3 *3", "5 6 7"],
        ["R *6 *7 8", "R *200 *201 202"],
        ["R *202 *203 204", "203 *203 *203"],
        ["205", "*203"],
    ]


def test_a_window_without_any_target_is_known():
    lanes = SequenceLanes(counting([9, 9]), 2, 2, 2, inputs="x", burn_in=5)
    assert [batch.scored for batch in lanes] == [(False, False), None, None]


def test_a_window_that_a_mask_leaves_without_any_target_is_known_where_its_lanes_are():
    items = [{"x": torch.arange(7), "ok": torch.arange(7) == only} for only in (0, 4)]
    options = {"inputs": "x", "mask": "ok", "lengths": [7, 7]}
    lanes = [SequenceLanes(items, 2, 2, 4, **options, rank=rank) for rank in (Rank(), Rank(1, 2))]
    assert [(batch.scored, batch.scored_here) for each in lanes for batch in each] == [
        ((True, False, True, False), True),
        ((False, False, True, False), True),
    ]
    items[1]["ok"][2] = items[1]["ok"][6] = True
    assert [(batch.scored, batch.scored_here) for batch in lanes[0]] == [(None, True)]


def test_random_lanes_begin_anywhere_with_a_reset():
    lanes = SequenceLanes(counting([20, 3, 30, 20]), 5, 4, inputs="x", random_lanes=3, burn_in=1, max_length=5)
    lanes.set_epoch(2)
    batches = list(lanes)
    starts = set()
    for batch in batches:
        (window,), (rows,) = batch.windows, batch.rows
        assert window.reset[2:].all()
        assert window.num_time_steps == 4
        assert not window.mask[2:, 0].any()
        for lane in range(2, 5):
            sequence, start, steps = rows[lane].tolist()
            assert window.inputs[lane, :steps].tolist() == list(
                range(100 * sequence + start, 100 * sequence + start + steps)
            )
            assert steps == min(window.num_time_steps, [20, 3, 30, 20][sequence] - start)
            starts.add((sequence, start))
    assert len(starts) > len(batches)
    assert [batch.rows.tolist() for batch in lanes] == [batch.rows.tolist() for batch in batches]
    lanes.set_epoch(3)
    assert [batch.rows.tolist() for batch in lanes] != [batch.rows.tolist() for batch in batches]


def test_repeated_sequences_never_end():
    lanes = SequenceLanes(counting([3, 4, 2]), 2, 2, inputs="x", repeat=True, shuffle=True)
    with pytest.raises(TypeError):
        len(lanes)
    held = Counter()
    for batch, _ in zip(lanes, range(40), strict=False):
        held.update(batch.windows[0].inputs[batch.windows[0].mask_or_ones()].tolist())
    assert len(held) == 9
    assert max(held.values()) - min(held.values()) <= 2


@st.composite
def layouts(draw):
    num_lanes = draw(st.integers(1, 4))
    shift = draw(st.integers(0, 2))
    lengths = draw(st.lists(st.integers(shift + 1, 17), min_size=num_lanes, max_size=9))
    burn_in = draw(st.integers(0, min(4, max(lengths) - shift - 1)))
    options = {
        "num_lanes": num_lanes,
        "k1": draw(st.integers(1, 6)),
        "windows_per_batch": draw(st.integers(1, 3)),
        "shift": shift,
        "burn_in": burn_in,
        "max_length": draw(st.none() | st.integers(1, 9)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 9)),
    }
    # As many pieces as lanes, and a target in some of them.
    assume(len(Pieces.of_sequences(np.array(lengths) - shift, options["max_length"], burn_in).starts) >= num_lanes)
    return lengths, options


def in_use(part):
    return part["x"] >= 0


def lanes_of(lengths, options, **more):
    return SequenceLanes(counting(lengths), **options, **more, inputs="x", mask=in_use)


@settings(SETTINGS, max_examples=120)
@given(layouts())
def test_every_time_step_is_a_target_once_in_order_from_a_reset_on(layout):
    lengths, options = layout
    lanes = lanes_of(lengths, options)
    lanes.set_epoch(3)
    starts, ends = (set(zip(lanes.pieces.sequences, places, strict=True)) for places in lanes.pieces[1:3])
    scored, before = Counter(), [None] * options["num_lanes"]
    batches = list(lanes)
    for batch in batches:
        for number, (window, rows) in enumerate(zip(batch.windows, batch.rows.tolist(), strict=True)):
            assert window.num_time_steps == max(steps for _, _, steps in rows)
            mask, resets = window.mask_or_ones(), window.reset_or_zeros().tolist()
            assert bool(mask.any()) == (batch.scored is None or batch.scored[number])
            for lane, (sequence, start, steps) in enumerate(rows):
                if resets[lane]:
                    assert before[lane] is None or before[lane] in ends
                    assert (sequence, start) in starts
                elif steps:
                    assert before[lane] == (sequence, start)
                assert not (resets[lane] and steps == 0)
                if steps == 0:
                    assert not mask[lane].any()
                    assert window.inputs[lane].unique().numel() == 1
                    continue
                expected = list(range(100 * sequence + start, 100 * sequence + start + steps))
                assert window.inputs[lane, :steps].tolist() == expected
                assert set(window.inputs[lane, steps:].tolist()) <= {expected[-1]}
                scored.update(window.inputs[lane][mask[lane]].tolist())
                before[lane] = (sequence, start + steps)
    burn_in, shift = options["burn_in"], options["shift"]
    assert scored == Counter(100 * i + t for i, n in enumerate(lengths) for t in range(burn_in, n - shift))
    if not options["shuffle"]:
        assert len(lanes) == len(batches)
    assert sum(int(window.mask_or_ones().sum()) for batch in batches for window in batch.windows) == (
        lanes.pieces.num_targets
    )


@settings(SETTINGS, max_examples=40)
@given(layouts(), st.integers(0, 30))
def test_lanes_go_on_at_any_batch(layout, place):
    lengths, options = layout
    lanes = lanes_of(lengths, options)
    lanes.set_epoch(1)
    batches = list(lanes)
    place %= len(batches)
    for position, skip in (
        (batches[place].position, 0),
        (None, place),
        (batches[place // 2].position, place - place // 2),
    ):
        again = lanes_of(lengths, options)
        again.load_state_dict(lanes.state_dict() | {"position": position, "skip": skip})
        rest = list(again)
        assert [batch.position for batch in rest] == [batch.position for batch in batches[place:]]
        for ours, theirs in zip(rest, batches[place:], strict=True):
            assert_close(ours.windows, theirs.windows, rtol=0, atol=0)


def test_a_run_cannot_go_on_with_other_contents_of_the_same_lengths():
    def lanes(items, **options):
        return SequenceLanes(items, 2, 3, inputs="x", targets="y", **options)

    def items(changed=None, time=0, leaf="x"):
        made = counting([4] * 40)
        if changed is not None:
            made[changed][leaf] = made[changed][leaf].clone()
            made[changed][leaf][time] += 1
        return made

    def unused(part, generator):
        raise AssertionError("is not called for the checksum")

    saved = lanes(items()).state_dict()
    transformed = lanes(items(), transform=unused).state_dict()
    assert transformed["fixed"]["dataset"] == saved["fixed"]["dataset"]
    lanes(items(1)).load_state_dict(saved)  # an item between those that are compared
    for other in (items(0), items(39), items(2), items(39, 3), items(0, 0, "y"), items(0, 3, "y")):
        with pytest.raises(InputError, match=r"dataset=40 .* contents (\w+), where .* has .* contents (?!\1)"):
            lanes(other).load_state_dict(saved)


def test_contents_that_differ_at_every_reading_are_not_compared():
    class Noisy(list):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"x": torch.rand(3)}

    saved = SequenceLanes(Noisy(counting([3, 3])), 2, 3, inputs="x").state_dict()
    assert saved["fixed"]["dataset"].endswith("and contents that differ at every reading")
    SequenceLanes(Noisy(counting([3, 3])), 2, 3, inputs="x").load_state_dict(saved)


def test_a_dataset_is_not_read_beside_the_reading_thread():
    threads = set()

    class Watched(list):
        def __getitem__(self, index):
            threads.add(threading.current_thread())
            return super().__getitem__(index)

    lanes = SequenceLanes(Watched(counting([9, 9])), 2, 3, inputs="x")
    batches = iter(lanes)
    next(batches)
    threads.clear()
    lanes.state_dict()
    assert threading.current_thread() not in threads
    batches.close()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_hold_the_lanes_of_one(num_ranks):
    lengths = [7, 3, 12, 5, 9, 2, 4]
    options = {"num_lanes": 4, "k1": 3, "windows_per_batch": 2, "shift": 1, "max_length": 5, "burn_in": 1}
    options |= {"shuffle": True, "random_lanes": 1}
    whole = list(lanes_of(lengths, options))
    opened = [[] for _ in range(num_ranks)]

    class Opened(list):
        def __init__(self, items, number):
            super().__init__(items)
            self.number = number

        def __getitem__(self, index):
            opened[self.number].append(index)
            return super().__getitem__(index)

    def lanes(number, all_gather):
        rank = RankAmongThreads(number, num_ranks, all_gather)
        made = SequenceLanes(Opened(counting(lengths), number), **options, inputs="x", mask=in_use, rank=rank)
        assert sorted(opened[number]) == list(rank.share(len(lengths)))  # to find the lengths, each its share
        made.state_dict()  # which opens some items on every rank, for a checksum
        opened[number].clear()
        return made

    parts = SideBySide(num_ranks).run(lanes, list)
    for batches in zip(whole, *parts, strict=True):
        one, *others = batches
        assert all(other.position == one.position for other in others)
        assert one.scored_here
        assert all(other.scored_here for other in others)
        flags = [batch.scored or (True,) * len(batch.windows) for batch in batches]
        assert tuple(map(any, zip(*flags[1:], strict=True))) == flags[0]
        assert torch.equal(torch.cat([other.rows for other in others], 1), one.rows)
        for number, window in enumerate(one.windows):
            inputs = torch.cat([other.windows[number].inputs for other in others])
            assert torch.equal(inputs, window.inputs)
            masks = torch.cat([other.windows[number].mask_or_ones() for other in others])
            assert torch.equal(masks, window.mask_or_ones())
    held = [{sequence for batch in part for sequence in batch.rows[..., 0].flatten().tolist()} - {-1} for part in parts]
    assert [set(numbers) for numbers in opened] == held


def test_a_transform_has_a_generator_for_each_sequence_and_epoch():
    def louder(part, generator):
        return part | {"y": part["y"] * 0 + torch.rand((), generator=generator)}

    lanes = SequenceLanes(counting([5, 7, 6]), 2, 2, inputs="x", targets="y", transform=louder, seed=4)
    gains = {}
    for epoch in (0, 1, 0):
        lanes.set_epoch(epoch)
        for batch in lanes:
            for (sequence, _, steps), row in zip(batch.rows[0].tolist(), batch.windows[0].targets, strict=True):
                if steps:
                    gains.setdefault((epoch, sequence), set()).update(row.tolist())
    assert len(gains) == 6
    assert all(len(each) == 1 for each in gains.values())
    assert len(set.union(*gains.values())) == 6


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "the dataset is empty"),
        ((torch.zeros(3), torch.zeros(3)), {}, r"the dataset is a tuple: .* \[\(inputs, targets\)\]"),
        (counting([3, 4]), {"inputs": "z"}, r"item 0 has no leaf 'z'.*\['x', 'y', 'of'\]"),
        (counting([3, 0, 4]), {"inputs": "x"}, "item 1 has 0 time steps"),
        (counting([3, 1, 1]), {"inputs": "x", "shift": 1}, r"item 1 has 1 time steps, and with shift=1 .*2 such"),
        (counting([3]), {"inputs": "x"}, "num_lanes=2 over 1 sequences.*max_length"),
        (counting([3, 3]), {"inputs": "x", "burn_in": 3}, "burn_in=3: the longest sequence has 3"),
        (counting([9, 9]), {"inputs": "x", "random_lanes": 1, "burn_in": 3}, "burn_in=3 with random_lanes=1"),
        (counting([9, 9]), {"inputs": "x", "random_lanes": 2}, "random_lanes=2 of num_lanes=2"),
        (counting([3, 3]), {"inputs": "x", "targets": "y", "shift": 1}, "shift=1 with targets='y'"),
        (counting([3, 3]), {"inputs": "x", "max_length": 0}, "max_length=0"),
        (counting([3, 3]), {"inputs": "x", "shuffle": "no"}, "shuffle='no': must be True or False"),
        (counting([3, 3]), {"inputs": "x", "repeat": 1}, "repeat=1: must be True or False"),
        (counting([3, 3]), {"inputs": "x", "lengths": [3]}, "lengths: 1 numbers for 2 items"),
        (counting([3, 3]), {}, r"inputs=None, and item 0 has the keys \['x', 'y', 'of'\]"),
    ],
)
def test_wrong_data_are_refused_before_anything_is_read(items, options, message):
    with pytest.raises(InputError, match=message):
        SequenceLanes(items, 2, 3, **options)


def broken(change):
    items = counting([3, 4, 5])
    items[1] = items[1] | change
    return items


class Failing(list):
    def __getitem__(self, index):
        if index == 1:
            raise OSError("no such recording")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (broken({"y": torch.zeros(3)}), "item 1: the leaf 'y' has 3 time steps where 4 are expected: all"),
        (broken({"y": torch.zeros(6)}), "item 1: the leaf 'y' has 6 time steps where 4 are expected: all"),
        (broken({"y": torch.zeros(4, 2)}), r"item 1: targets is floating-point of \(2,\) a time step, .*\(\)"),
        (broken({"y": torch.zeros(4, dtype=torch.int64)}), "item 1: targets is torch.int64"),
        (broken({"y": torch.tensor([1.0, torch.nan, 3.0, 4.0])}), "item 1: targets is NaN at time step 1: give a mask"),
        (
            broken({"y": torch.tensor([1.0, 2.0, -torch.inf, 4.0])}),
            "item 1: targets is -inf at time step 2: give a mask",
        ),
        ([{"x": torch.zeros(4), "y": torch.zeros(4)}, {"x": torch.zeros(4)}], "item 1 has no 'y': its keys are"),
        (broken({"y": ["a", "b", "c", "d"]}), "item 1: a leaf cannot be read as a tensor"),
        (broken({"y": [[1.0], [2.0, 3.0], [4.0], [5.0]]}), "item 1: a leaf cannot be read as a tensor"),
        (Failing(counting([3, 4])), "item 1 cannot be read: OSError: no such recording"),
    ],
)
def test_a_wrong_item_is_named(items, message):
    with pytest.raises(InputError, match=message):
        list(SequenceLanes(items, 2, 3, inputs="x", targets="y", lengths=[len(item["x"]) for item in list(items)]))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([1.0, 0, 1, 1]), "item 1: the mask is torch.float32: must be bool, or integers 0 and 1"),
        (torch.tensor([1, 2, 0, 1]), "item 1: the mask has the value 2: must be bool, or integers 0 and 1"),
        (torch.tensor([1, -1, 0, 1], dtype=torch.int8), "item 1: the mask has the value -1"),
        (torch.ones(4, 2, dtype=torch.bool), r"item 1: the mask must be one leaf, \[time\]"),
    ],
)
def test_a_mask_is_true_or_false(mask, message):
    items = [item | {"ok": torch.ones(len(item["x"]), dtype=torch.bool)} for item in broken({})]
    items[1]["ok"] = mask
    with pytest.raises(InputError, match=message):
        list(SequenceLanes(items, 2, 4, inputs="x", targets="y", mask="ok"))


def missing(time, features=(), value=torch.nan):
    x = torch.zeros(5, *features)
    x[time] = value
    return [{"x": torch.zeros(4, *features), "y": torch.zeros(4)}, {"x": x, "y": torch.zeros(5)}]


@pytest.mark.parametrize("features", [(), (2, 3)])
@pytest.mark.parametrize(("value", "name"), [(torch.nan, "NaN"), (torch.inf, "inf"), (-torch.inf, "-inf")])
@pytest.mark.parametrize("time", [0, 3, 4])
def test_missing_inputs_are_named(time, value, name, features):
    """Also where nothing is scored: the state would be NaN from there on."""
    lanes = SequenceLanes(missing(time, features, value), 2, 2, inputs=["x"], targets="y", burn_in=3)
    with pytest.raises(InputError, match=rf"item 1: inputs\['x'\] is {name} at time step {time}: it would stay in the"):
        list(lanes)


def test_missing_inputs_can_be_filled():
    def filled(part):
        return {"x": part["x"].nan_to_num(7.0), "known": ~part["x"].isnan()}

    items = missing(3)
    (window,) = (batch.windows[0] for batch in SequenceLanes(items, 2, 5, inputs=filled, targets="y"))
    assert window.inputs["x"][1].tolist() == [0, 0, 0, 7, 0]
    assert window.inputs["known"][1].tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("inputs", ["x", lambda part: part["x"] + part["of"]])
def test_wrong_lengths_are_named(inputs):
    items = counting([3, 4, 5])
    lanes = SequenceLanes(items, 2, 9, inputs=inputs, targets="y", static="of", lengths=[3, 4, 7])
    with pytest.raises(InputError, match=r"item 2: lengths\[2\]=7, and its leaf 'x' has 5 time steps: correct lengths"):
        list(lanes)
    for wrong in ([3.0, 4.0, 5.0], [[3, 4, 5]], "length"):
        with pytest.raises(InputError, match=r"lengths=.*: must be whole numbers, the time steps of every item"):
            SequenceLanes(items, 2, 9, inputs=inputs, lengths=wrong)


def test_a_leaf_more_or_less_is_named():
    fewer, more = ({"x": torch.zeros(3), "y": {name: torch.zeros(3) for name in names}} for names in ("a", "ab"))
    there = r"targets\['b'\] is floating-point of \(\) a time step"
    for items, message in (
        ([fewer, more], f"item 1: {there}, where in the items before there is no other leaf"),
        ([more, fewer], f"item 1: there is no other leaf, where in the items before {there}"),
    ):
        with pytest.raises(InputError, match=message):
            list(SequenceLanes(items, 2, 3, inputs="x", targets="y"))


@pytest.mark.parametrize("second", [torch.zeros(3), "text", torch.zeros(2, dtype=torch.int64)])
def test_static_leaves_are_alike(second):
    items = [{"x": torch.zeros(3), "goal": goal} for goal in (torch.zeros(2), second)]
    with pytest.raises(InputError, match="item 1: its static leaves are"):
        list(SequenceLanes(items, 2, 3, inputs="x", static=["goal"]))


@pytest.mark.parametrize(("value", "name"), [(torch.nan, "NaN"), (torch.inf, "inf")])
def test_missing_static_values_are_named(value, name):
    items = [{"x": torch.zeros(3), "goal": torch.tensor([3.0, last])} for last in (4.0, value)]
    with pytest.raises(InputError, match=rf"item 1: static\['goal'\] is {name}: fill missing values in the dataset"):
        list(SequenceLanes(items, 2, 3, inputs="x", static=["goal"]))


def test_lists_of_numbers_are_single_leaves():
    window = next(iter(SequenceLanes([[1.0, 2.0, 4.0], [3.0, 5.0, 9.0]], 2, 2, shift=1))).windows[0]
    assert window.targets.tolist() == [[2.0, 4.0], [5.0, 9.0]]


def test_missing_targets_under_the_mask_are_none_of_the_loss():
    items = broken({"y": torch.tensor([1.0, torch.nan, 3.0, -torch.inf]), "ok": torch.tensor([1, 0, 1, 0])})
    items = [{"ok": torch.ones(len(item["x"]), dtype=torch.int64)} | item for item in items]
    lanes = SequenceLanes(items, 2, 4, inputs="x", targets="y", mask="ok")
    window = next(iter(lanes)).windows[0]
    assert window.mask.tolist() == [[True, True, True, False], [True, False, True, False]]
    assert window.targets[1].tolist() == [1.0, 0.0, 3.0, 0.0]


def test_a_run_cannot_go_on_with_other_windows():
    lanes = SequenceLanes(counting([3, 4]), 2, 3, inputs="x")
    for other in (
        SequenceLanes(counting([3, 5]), 2, 3, inputs="x"),
        SequenceLanes(counting([3, 4]), 2, 3, inputs="x", max_length=3),
        SequenceLanes(counting([3, 4]), 2, 3, inputs="x", shift=1),
    ):
        with pytest.raises(InputError, match="where the run to be resumed has"):
            other.load_state_dict(lanes.state_dict())


def test_tuples_single_leaves_memory_maps_and_float64(tmp_path):
    x = np.memmap(tmp_path / "x", np.uint16, "w+", shape=(7, 2))
    x[:] = np.arange(14).reshape(7, 2)
    x.flush()
    items = [(np.memmap(tmp_path / "x", np.uint16, "r", shape=(7, 2)), np.linspace(0, 1, 7))]
    window = next(iter(SequenceLanes(items, 1, 7))).windows[0]
    assert window.inputs.dtype == torch.int64
    assert window.inputs.tolist() == [x.tolist()]
    assert window.targets.dtype == torch.float32
    window = next(iter(SequenceLanes([np.linspace(0, 1, 7)], 1, 7, shift=1, dtypes=torch.float64))).windows[0]
    assert window.inputs.dtype == torch.float64
    assert_close(window.targets[0], torch.linspace(0, 1, 7, dtype=torch.float64)[1:])


def test_a_rank_without_lanes_has_rows_of_none():
    lanes = SequenceLanes(counting([4, 5]), 2, 3, inputs="x", lengths=[4, 5], rank=Rank(2, 3))
    assert [(batch.rows.dtype, *batch.rows.shape) for batch in lanes] == [(torch.int64, 1, 0, 3)] * 2
