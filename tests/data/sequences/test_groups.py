"""Items whose leaves are found by name: groups of h5py and zarr, nested too, and anything else that has keys."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_tbptt import InputError, SequenceLanes

LENGTHS = (7, 4, 9)
SELECTED = {"inputs": "obs", "targets": "action", "static": ["goal"]}


class Group:
    """All that a group of zarr has of a dictionary; leaves are opened whenever they are named."""

    def __init__(self, leaves):
        self.leaves, self.opened = leaves, []

    def keys(self):
        return iter(self.leaves)

    def __len__(self):
        return len(self.leaves)

    def __getitem__(self, name):
        if not isinstance(name, str):
            raise TypeError(f"path={name} is not a string")
        self.opened.append(name)
        return self.leaves[name]


def leaves(i, n):
    generator = np.random.default_rng(i)
    obs = {"speed": generator.normal(size=(n, 3)), "image": generator.integers(0, 255, (n, 2, 2), np.uint8)}
    return {"goal": np.full(2, float(i)), "obs": obs, "action": generator.normal(size=n), "zzz": np.zeros(1)}


def groups(_):
    return [Group(made | {"obs": Group(made["obs"])}) for made in (leaves(i, n) for i, n in enumerate(LENGTHS))]


def h5py_groups(folder):
    file = pytest.importorskip("h5py").File(folder / "a.h5", "w")
    for i, n in enumerate(LENGTHS):
        obs, made = file.create_group(f"{i}/obs"), leaves(i, n)
        for name, values in made.pop("obs").items():
            obs[name] = values
        for name, values in made.items():
            file[f"{i}/{name}"] = values
    return [file[name] for name in file]


@pytest.mark.parametrize("kind", [groups, h5py_groups])
def test_groups_are_read_as_dictionaries(kind, tmp_path):
    made = kind(tmp_path)
    expected = list(SequenceLanes([leaves(i, n) for i, n in enumerate(LENGTHS)], 2, 3, **SELECTED))
    for items in (made, [{name: group[name] for name in ("goal", "obs", "action")} for group in made]):
        for ours, theirs in zip(SequenceLanes(items, 2, 3, **SELECTED), expected, strict=True):
            assert_close(ours.windows, theirs.windows, rtol=0, atol=0)


def test_a_group_is_opened_once_for_all_its_windows():
    items = groups(None)
    lanes = SequenceLanes(items, 3, 2, **SELECTED, lengths=LENGTHS)
    lanes.state_dict()  # opens items for a checksum
    for item in items:
        item.opened.clear()
    assert sum(1 for _ in lanes) == 5
    assert [sorted(item.opened) for item in items] == [["action", "goal", "obs"]] * 3


def test_a_function_reads_the_leaves_of_a_group():
    lanes = SequenceLanes(groups(None), 2, 3, inputs=lambda part: part["obs"]["speed"], targets="action")
    assert next(iter(lanes)).windows[0].inputs.dtype == torch.float32


def test_a_whole_file_or_dictionary_is_refused():
    for data in (Group({"a": 1, "b": 2}), {"a": {"x": torch.zeros(3)}, "b": {"x": torch.zeros(3)}}):
        with pytest.raises(InputError, match=r"the dataset is of the type .*\['a', 'b'\].*give a list, such as"):
            SequenceLanes(data, 1, 3, inputs="x", shift=1)
    assert len(SequenceLanes({0: {"x": torch.zeros(3)}}, 1, 3, inputs="x")) == 1


def test_a_file_that_was_closed_is_named():
    class Closed:
        shape = (5,)

        def __getitem__(self, _):
            raise RuntimeError("the file was closed")

    with pytest.raises(InputError, match=r"^item 0 cannot be read: RuntimeError: the file was closed"):
        list(SequenceLanes([{"x": Closed()}], 1, 3, inputs="x"))
