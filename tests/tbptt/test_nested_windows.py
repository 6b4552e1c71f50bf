"""Windows of dictionaries and tuples are trained exactly as the same numbers in one tensor are."""

import io
from types import MethodType
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_tbptt import Batch, Carry, InputError, Task, Truncation, Window

NUM_LANES, NUM_TIME_STEPS = 3, 13


class Sensors(NamedTuple):
    position: torch.Tensor
    buttons: torch.Tensor


class Flat(Task, nn.Module):
    """A GRU over one tensor; its initial state is computed from what is static, if that is given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.core = nn.GRU(5, 4, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(4, 3, dtype=torch.float64)
        self.start = nn.Linear(2, 4, dtype=torch.float64)

    def initial_state(self, num_lanes):
        return {"h": self.start.bias.expand(num_lanes, -1)}

    def initial_state_of(self, static):
        return {"h": self.start(static)}

    def leaves(self, window):
        return window.inputs, window.targets

    def window_loss(self, window, state):
        inputs, targets = self.leaves(window)
        outputs, h = self.core(inputs, state["h"][None].contiguous())
        errors = (self.head(outputs) - targets).square().sum(-1)[window.mask_or_ones()]
        return errors.sum(), errors.numel(), {"h": h[0]}


class Nested(Flat):
    def initial_state_of(self, static):
        return {"h": self.start(torch.stack([static["area"], static["slope"]], -1))}

    def leaves(self, window):
        sensors, image = window.inputs["sensors"], window.inputs["image"]
        inputs = torch.cat([sensors.position, sensors.buttons[..., None].double(), image.flatten(2)], -1)
        return inputs, torch.cat([window.targets[0], window.targets[1][..., None]], -1)


def windows_of(k1, nested, static=True):
    """The same data as windows, with resets in the middle and a mask; every leaf of another shape."""
    torch.manual_seed(5)
    inputs = torch.randn(NUM_LANES, NUM_TIME_STEPS, 5, dtype=torch.float64)
    inputs[..., 2] = inputs[..., 2] > 0
    targets = torch.randn(NUM_LANES, NUM_TIME_STEPS, 3, dtype=torch.float64)
    mask = torch.rand(NUM_LANES, NUM_TIME_STEPS) > 0.2
    of_sequences = torch.randn(2, NUM_LANES, 2, dtype=torch.float64)
    windows = []
    for number, at in enumerate(range(0, NUM_TIME_STEPS, k1)):
        times = slice(at, at + k1)
        reset = torch.tensor([True, number == 1, False]) if number in (1, 2) else None
        about = of_sequences[int(number >= 2)].clone()
        about[1:] = of_sequences[int(number >= 1)][1:]
        x, y = inputs[:, times], targets[:, times]
        if nested:
            x = {"image": x[..., 3:].unflatten(-1, (1, 2)), "sensors": Sensors(x[..., :2], x[..., 2] > 0)}
            y = (y[..., :2], y[..., 2])
            about = {"slope": about[:, 1], "area": about[:, 0]}
        windows.append(Window(x, y, reset, mask[:, times], about if static else None))
    return windows


def trained(task, windows, k1, k2, recompute_every=None, through=lambda carry: carry):
    """Returns the gradients of all windows, and the last carry."""
    truncation, carry = Truncation(k1, k2, recompute_every), None
    for window in windows:
        cost = truncation(task, window, carry)
        cost.loss.backward()
        carry = through(cost.carry.detach())
    return [parameter.grad for parameter in task.parameters()], carry


def described(carry):
    """As a checkpoint has it: written and read safely."""
    file = io.BytesIO()
    torch.save(carry.describe(), file)
    file.seek(0)
    description = torch.load(file, weights_only=True)
    return Carry.from_descriptions([description], range, Flat().initial_state, torch.device("cpu"))


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("k1", "k2", "recompute_every"), [(4, 4, None), (2, 7, None), (3, 8, 2), (1, 5, None)])
def test_the_gradients_are_those_of_one_tensor(k1, k2, recompute_every, static):
    flat, nested = Flat(), Nested()
    for task in () if static else (flat, nested):
        task.initial_state_of = MethodType(Task.initial_state_of, task)
    expected, _ = trained(flat, windows_of(k1, False, static), k1, k2)
    ours, carry = trained(nested, windows_of(k1, True, static), k1, k2, recompute_every, described)
    assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert static == (ours[-2] is not None)  # the weights that make the initial state of what is static
    assert all(window.inputs.keys() == {"image", "sensors"} for window in carry.context)


def test_lanes_of_nested_windows_are_shared_out_as_others_are():
    _, whole = trained(Nested(), windows_of(2, True), 2, 7)
    _, parts = trained(Nested(), windows_of(2, True), 2, 7)
    description = parts.describe()
    shared = [
        Carry.from_descriptions(
            [description], lambda n, lanes=lanes: lanes, Nested().initial_state, torch.device("cpu")
        )
        for lanes in (range(1), range(1, 3))
    ]
    again = Carry.from_descriptions(
        [part.describe() for part in shared], range, Nested().initial_state, torch.device("cpu")
    )
    assert_close(again.state, whole.state)
    assert len(again.context) == len(whole.context)
    for ours, window in zip(again.context, whole.context, strict=True):
        assert_close(ours.like(window)[:2], window[:2])
        assert isinstance(ours.like(window).inputs["sensors"], Sensors)


def test_a_window_without_targets_is_cut_joined_and_stacked():
    window = windows_of(13, True)[0]._replace(targets=None)
    first, second = window.split(5)
    assert first.targets is second.targets is None
    assert_close(first.join(second).inputs, window.inputs)
    assert Window.stack([first, first]).num_lanes == 2 * NUM_LANES
    assert Window.stack([first, first]).static["area"].shape == (2 * NUM_LANES,)


X, Y = torch.zeros(3, 4, 2), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window({"a": X, "b": (Y, [Y])}, Y), r"inputs\['b'\]\[1\] is a list.* pad a list to one tensor"),
        (Window({"a": X, "b": None}, Y), r"inputs\['b'\] is None"),
        (Window({"a": X, "b": "text"}, Y), r"inputs\['b'\] is a str"),
        (Window({"a": X, "b": X[:, :3]}, Y), r"inputs\['b'\] has the shape \(3, 3, 2\).*with 3 and 4, as inputs"),
        (Window(X, (Y, Y[:2])), r"targets\[1\] has the shape \(2, 4\)"),
        (Window(X, Y, static={"s": torch.zeros(2)}), r"static\['s'\] has the shape \(2,\): it must be \[lane"),
        (Window({}, Y), "inputs"),
    ],
)
def test_leaves_that_are_no_tensors_or_do_not_fit_are_named(window, message):
    with pytest.raises(InputError, match=message):
        Truncation(4)(Nested(), window)


def test_windows_that_change_their_leaves_are_refused():
    truncation, first = Truncation(2, 4), windows_of(2, True)[0]
    carry = truncation(Nested(), first).carry.detach()
    other = first._replace(inputs={"sensors": first.inputs["sensors"], "picture": first.inputs["image"]})
    with pytest.raises(InputError, match="inputs of a window has other leaves than those of the windows before it"):
        truncation(Nested(), other, carry)


def test_a_computed_initial_state_has_the_shapes_of_the_other():
    class Wrong(Nested):
        def initial_state_of(self, static):
            return self.returned

    for returned, shown in (
        ({"h": torch.zeros(NUM_LANES, 5)}, r"{'h': \(3, 5\)}"),
        (torch.zeros(NUM_LANES, 4), r"\(3, 4\)"),
        ({"h": 2.5}, "{'h': 'float'}"),
    ):
        expected = rf"Wrong.initial_state_of returned tensors of the shapes {shown}, where .* {{'h': \(3, 4\)}}"
        task = Wrong()
        task.returned = returned
        with pytest.raises(InputError, match=expected):
            Truncation(2)(task, windows_of(2, True)[0])


def test_a_batch_of_nested_windows_goes_to_a_device():
    batch = Batch(tuple(windows_of(5, True)), {"window": 0}, torch.zeros(3, NUM_LANES, 3, dtype=torch.int64))
    moved = batch.to("meta")
    assert moved.windows[0].inputs["sensors"].buttons.device.type == "meta"
    assert moved.windows[1].static["area"].device.type == "meta"
    assert moved.rows.device.type == "cpu"


def test_static_leaves_that_were_forgotten_are_asked_for():
    with pytest.raises(InputError, match=r"Nested defines initial_state_of\(static\), and the windows have no static"):
        Truncation(2)(Nested(), windows_of(2, True, static=False)[0])
