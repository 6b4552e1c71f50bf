"""The dtypes of leaves: the same for all floating-point ones, or by key."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from lit_tbptt import InputError, SequenceLanes
from lit_tbptt.data.sequences.dtypes import Dtypes

ITEM = {
    "x": np.linspace(0, 1, 3),  # float64
    "sound": np.array([-7, 0, 9], np.int16),
    "label": np.array([2, 0, 1], np.int32),
    "knob": np.array(5, np.int64),
}
SELECTED = {"inputs": ["x", "sound"], "targets": "label", "static": ["knob"]}


def dtypes_of(dtypes, **selected):
    window = next(iter(SequenceLanes([ITEM], 1, 3, **SELECTED | selected, dtypes=dtypes))).windows[0]
    return (*(leaf.dtype for leaf in window.inputs.values()), window.targets.dtype, window.static["knob"].dtype)


f16, f32, f64, i16, i32, i64 = (torch.float16, torch.float32, torch.float64, torch.int16, torch.int32, torch.int64)


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (None, (f32, i16, i32, i64)),
        ("float64", (f64, i16, i32, i64)),
        (torch.bfloat16, (torch.bfloat16, i16, i32, i64)),
        ({"sound": "float32", "label": torch.int64}, (f32, f32, i64, i64)),
        ({"x": f16, "knob": "float64"}, (f16, i16, i32, f64)),
        ({"sound": f64}, (f32, f64, i32, i64)),  # which leaves x as it would be
    ],
)
def test_dtypes_by_leaf(dtypes, expected):
    assert dtypes_of(dtypes) == expected
    by_function = {"inputs": lambda part: {"x": part["x"], "sound": part["sound"]}}
    assert dtypes_of(dtypes, **by_function) == expected


@pytest.mark.parametrize(("given", "kept"), [("u1", torch.uint8), ("u2", i64), ("u4", i64), ("u8", i64)])
def test_bytes_stay_and_wider_unsigned_integers_become_int64(given, kept):
    window = next(iter(SequenceLanes([np.arange(4, dtype=given)], 1, 3, shift=1))).windows[0]
    assert (window.inputs.dtype, window.inputs.tolist()) == (kept, [[0, 1, 2]])


def test_what_a_function_makes_is_float32_unless_a_key_has_its_dtype():
    made = {"inputs": lambda part: {"x": part["x"].double(), "sound": part["sound"].half()}}
    assert dtypes_of({"label": "int64"}, **made)[:2] == (f32, f32)
    assert dtypes_of({"x": "float64"}, **made)[:2] == (f64, f32)


def test_values_are_kept_and_columns_of_datasets_are_converted():
    rows = Dataset.from_dict({"x": [[1, 2, 3]], "y": [[0, 4, 5]]})
    lanes = SequenceLanes(rows, 1, 3, inputs="x", targets="y", dtypes={"x": "float32"})
    window = next(iter(lanes)).windows[0]
    assert (window.inputs.dtype, window.inputs.tolist()) == (f32, [[1.0, 2.0, 3.0]])
    assert (window.targets.dtype, window.targets.tolist()) == (i64, [[0, 4, 5]])


def test_leaves_of_tuples_and_nested_ones_are_named_by_their_place():
    item = ({"a": np.arange(4, dtype=np.int8), "b": np.zeros(4)}, np.arange(4, dtype=np.int16))
    window = next(iter(SequenceLanes([item], 1, 4, dtypes={0: "float64", 1: "int64"}))).windows[0]
    assert ({name: leaf.dtype for name, leaf in window.inputs.items()}, window.targets.dtype) == (
        {"a": f64, "b": f64},
        i64,
    )


def test_dtypes_that_cannot_be_are_refused():
    for wrong in ("float33", "Tensor", 32):
        with pytest.raises(InputError, match=f"dtypes={wrong!r}: must be a torch dtype or its name"):
            Dtypes(wrong)
    with pytest.raises(InputError, match=r"dtypes=int32: .*to convert others, name them"):
        Dtypes("int32")
    with pytest.raises(InputError, match=r"there is no leaf 'lable': item 0 has the keys \['x', 'sound', 'label'"):
        dtypes_of({"lable": "int64"})
    rows = Dataset.from_dict({"x": [[1.0, 2.0]], "y": [[1, None]]})
    with pytest.raises(InputError, match=r"item 0: the leaf 'y' holds missing values \(NaN\), which dtypes\['y'\]"):
        list(SequenceLanes(rows, 1, 2, inputs="x", targets="y", dtypes={"y": "int64"}))
