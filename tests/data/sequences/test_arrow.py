"""Hugging Face datasets of sequences: read through Arrow, the same as their items."""

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, List, Value
from torch.testing import assert_close

from lit_tbptt import InputError, SequenceLanes
from lit_tbptt.data.sequences.arrow import ArrowSequences

LENGTHS = (5, 7, 9, 4)
ROWS = {
    "signal": [[float(10 * i + t) for t in range(n)] for i, n in enumerate(LENGTHS)],
    "pairs": [[[t, -t] for t in range(n)] for n in LENGTHS],
    "image": [np.arange(6 * n).reshape(n, 6).tolist() for n in LENGTHS],
    "gauge": [30 + i for i in range(4)],
    "name": ["a", "b", "c", "d"],
}
FEATURES = Features(
    {
        "signal": List(Value("float64")),
        "pairs": List(List(Value("int32"), length=2)),
        "image": Array2D((None, 6), "float32"),
        "gauge": Value("int64"),
        "name": Value("string"),
    }
)


def dataset():
    return Dataset.from_dict(ROWS, FEATURES)


DATASETS = {
    "as it is": dataset,
    "shuffled": lambda: dataset().shuffle(seed=3),
    "selected": lambda: dataset().select([3, 0, 2]),
    "formatted": lambda: dataset().with_format("torch"),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_stretches_are_those_of_the_items(kind):
    made = DATASETS[kind]()
    rows = ArrowSequences(made)
    plain = made.with_format(None)
    assert rows.num_time_steps("pairs").tolist() == [len(item["signal"]) for item in plain]
    for number, item in enumerate(plain):
        row = rows[number]
        assert list(row) == list(ROWS)
        for name in ("signal", "pairs", "image"):
            assert len(row[name]) == len(item[name])
            assert row[name][1:3].tolist() == np.array(item[name])[1:3].tolist()
            assert row[name][2:99].tolist() == np.array(item[name])[2:].tolist()
            assert np.asarray(row[name]).tolist() == np.array(item[name]).tolist()
        assert (row["gauge"], row["name"]) == (item["gauge"], item["name"])


def test_lanes_of_a_dataset():
    lanes = SequenceLanes(dataset(), 2, 5, inputs=["pairs", "image"], targets="signal", static=["gauge"])
    assert lanes.source.lengths.tolist() == list(LENGTHS)
    first, second = (batch.windows[0] for batch in list(lanes)[:2])
    assert {name: (leaf.dtype, leaf.shape) for name, leaf in first.inputs.items()} == {
        "pairs": (torch.int32, (2, 5, 2)),
        "image": (torch.float32, (2, 5, 6)),
    }
    assert_close(first.targets, torch.tensor([[0.0, 1, 2, 3, 4], [10.0, 11, 12, 13, 14]]))
    assert_close(second.targets, torch.tensor([[20.0, 21, 22, 23, 24], [15.0, 16, 16, 16, 16]]))
    assert second.static["gauge"].tolist() == [32, 31]


def test_missing_numbers_are_nan_and_ragged_lists_are_refused():
    made = Dataset.from_dict({"x": [[1.0, None, 3.0]], "y": [[[1], [2, 3], [4]]]})
    assert np.isnan(ArrowSequences(made)[0]["x"][0:3]).tolist() == [False, True, False]
    with pytest.raises(InputError, match="item 0: a list inside a list has from 1 to 2 elements"):
        list(SequenceLanes(made, 1, 3, inputs="x", targets="y"))
    with pytest.raises(InputError, match=r"the column 'gauge' has the type .*: it has no time axis"):
        SequenceLanes(dataset(), 1, 3, inputs="gauge", targets="signal")


def test_a_stretch_is_a_view_of_what_the_dataset_maps():
    leaf = ArrowSequences(Dataset.from_dict({"x": [np.arange(3000, dtype=np.float32)]}))[0]["x"]
    assert np.shares_memory(leaf[128:256], leaf[:])
