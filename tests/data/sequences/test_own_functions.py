"""Functions of the user on slices of items: what they raise is reported as theirs."""

import numpy as np
import pytest
import torch

from lit_tbptt import InputError, SequenceLanes
from lit_tbptt.data.sequences.source import SequenceSource

ITEMS = [{"x": torch.zeros(n, 3), "y": torch.zeros(n), "goal": torch.zeros(2)} for n in (5, 7)]
READ = {"inputs": "x", "targets": "y"}


def of_item_1(result):
    """Returns a transform that changes what it returns where the second item is read."""
    return lambda part, generator: result(part) if len(part["x"]) == 3 else part


@pytest.mark.parametrize("name", ["inputs", "targets", "static", "mask"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda part: part["mine"], r"raised KeyError: 'mine' \(it was called with the leaves \['x', 'y', 'goal'\]\)"),
        (lambda part: part["x"] @ torch.ones(5), "raised RuntimeError: size mismatch"),
        (lambda part: len(3), r"raised TypeError: object of type 'int' has no len\(\)"),
        (lambda part: None, "returned None: the function must return the leaves"),
    ],
)
def test_the_function_that_raises_is_named(name, function, message):
    with pytest.raises(InputError, match=f"^item 0: {name} {message}"):
        list(SequenceLanes(ITEMS, 1, 8, **READ | {name: function, "lengths": [5, 7]}))


def test_functions_do_not_say_what_is_time():
    goal = {"inputs": lambda part: part["x"], "targets": lambda part: part["y"], "static": lambda part: part["goal"]}
    with pytest.raises(InputError, match=r"lengths=None, and the leaves of an item have the first sizes .*'goal': 2"):
        SequenceLanes(ITEMS, 1, 8, **goal)
    for known in ({"static": ["goal"]}, {"lengths": [5, 7]}):
        assert list(SequenceLanes(ITEMS, 1, 8, **goal | known).source.lengths) == [5, 7]


def test_a_source_has_its_own_arguments():
    with pytest.raises(InputError, match=r"^shift, dtypes: the SequenceSource was made with its own"):
        SequenceLanes(SequenceSource(ITEMS, **READ), 1, 8, shift=1, dtypes="float64")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda part: {"x": part["x"], "y": part["mine"]}, "transform raised KeyError: 'mine'"),
        (lambda part: len(3), "transform raised TypeError"),
        (lambda part: None, "transform returned None"),
        (lambda part: {"x": part["x"]}, r"what transform returned has no 'y': its keys are \['x'\]"),
    ],
)
def test_a_transform_that_raises_is_named(result, message):
    with pytest.raises(InputError, match=f"^item 1: {message}"):
        list(SequenceLanes(ITEMS, 1, 4, **READ, transform=of_item_1(result)))


def test_the_error_of_the_function_is_in_the_chain():
    with pytest.raises(InputError) as raised:
        list(SequenceLanes(ITEMS, 1, 8, inputs=lambda part: part["mine"], lengths=[5, 7]))
    causes = [raised.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], KeyError)


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_functions_may_write_to_what_they_get(kind):
    """The dataset stays as it is, also where its items are tensors."""
    items = [{name: leaf.clone() for name, leaf in item.items()} for item in ITEMS]
    if kind is np.ndarray:
        items = [{name: leaf.numpy() for name, leaf in item.items()} for item in items]

    def louder(part, generator):
        part["x"] += 1
        part["goal"] += 2
        return part

    def inputs(part):
        part["x"] *= 3
        return part["x"]

    lanes = SequenceLanes(items, 1, 4, inputs=inputs, targets="y", static=["goal"], transform=louder)
    for _ in range(2):
        windows = [window for batch in lanes for window in batch.windows]
        assert {float(value) for window in windows for value in window.inputs.unique()} <= {0.0, 3.0}
        assert len(windows) == 4
    assert all(not leaf.any() for item in items for leaf in item.values())
