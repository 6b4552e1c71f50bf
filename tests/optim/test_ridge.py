"""RidgeReadout beside the dense formula over rows collected by hand."""

import math
import os

import pytest
import torch
import torch.distributed as dist
from processes import together
from torch import nn
from torch.testing import assert_close

from lit_tbptt import Batch, EchoState, InputError, Rank, RidgeReadout, SequenceLanes, Task, Window

LENGTHS = (23, 9, 31, 14, 3)
BURN_IN = 4


class Reservoir(Task, nn.Module):
    """A readout of an echo-state network with one input."""

    def __init__(self, num_outputs=2, bias=True, size=6):
        super().__init__()
        self.core = EchoState(size, leak=0.7, input_size=1)
        self.drop = nn.Dropout()
        self.readout = nn.Linear(size, num_outputs, bias=bias)
        self.double()

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def predict_window(self, window, state):
        outputs, state = self.core(self.drop(window.inputs[..., None]), state)
        return self.readout(outputs), state


class Squeezed(Reservoir):
    def predict_window(self, window, state):
        outputs, state = super().predict_window(window, state)
        return outputs[..., 0], state


def sequences(num_outputs=2):
    generator = torch.Generator().manual_seed(5)
    for length in LENGTHS:
        sizes = [(length,), (length, num_outputs), (length,)]
        inputs, targets, chance = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in sizes)
        yield {"inputs": inputs, "targets": targets, "mask": chance > -1}


def lanes_of(data, **options):
    options = {"burn_in": BURN_IN, "mask": "mask"} | options
    return SequenceLanes(list(data), 3, 5, 2, dtypes=torch.float64, **options)


@torch.no_grad()
def rows_by_hand(task, data, burn_in=BURN_IN):
    """Every sequence whole, from the initial state; the rows of X, with ones for the bias, and of Y."""
    rows = []
    for each in data:
        outputs, _ = task.core(each["inputs"][None, :, None], task.initial_state(1))
        scored = each["mask"].clone()
        scored[:burn_in] = False
        ones = torch.ones(int(scored.sum()), 1 if task.readout.bias is not None else 0, dtype=torch.float64)
        rows.append((torch.cat([outputs[0][scored], ones], 1), each["targets"][scored]))
    return map(torch.cat, zip(*rows, strict=True))


def solution(task):
    weight, bias = task.readout.weight, task.readout.bias
    return (weight if bias is None else torch.cat([weight, bias[:, None]], 1)).detach().T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("l2", [0.3, 1e-6])
def test_it_equals_the_dense_formula(l2, bias):
    """Over several lanes, windows, sequences with resets, masks and burn-in, and window by window reduced."""
    task, data = Reservoir(bias=bias), list(sequences())
    x, y = rows_by_hand(task, data)
    readout = RidgeReadout(task, task.readout).add(lanes_of(data)).solve(l2)
    expected = torch.linalg.solve(x.T @ x + l2 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    assert_close(solution(task), expected, rtol=1e-10, atol=1e-10)
    assert readout.num_targets == len(x) == sum(LENGTHS) - BURN_IN * 4 - 3 - 9  # one sequence has 3 steps, 9 are masked


def test_without_a_penalty_it_is_least_squares():
    task, data = Reservoir(), list(sequences())
    x, y = rows_by_hand(task, data)
    RidgeReadout(task, task.readout).add(lanes_of(data)).solve(0.0)
    assert_close(solution(task), torch.linalg.lstsq(x, y).solution, rtol=1e-10, atol=1e-10)


def test_nearly_dependent_inputs_are_told_apart():
    """X^T X would have to be exact to 1e-20: its rounding errors are larger than l2."""
    task = Reservoir(num_outputs=1, size=40)
    task.core.input_weights *= 1e-3
    data = [each | {"inputs": each["inputs"].cumsum(0)} for each in sequences(1)]
    x, y = rows_by_hand(task, data)
    l2 = 1e-16 * torch.linalg.svdvals(x)[0].item() ** 2
    RidgeReadout(task, task.readout).add(lanes_of(data)).solve(l2)
    size = x.shape[1]
    stacked = torch.cat([x, l2**0.5 * torch.eye(size, dtype=x.dtype)]), torch.cat([y, torch.zeros(size, 1)])
    best = torch.linalg.lstsq(*stacked).solution
    assert_close(stacked[0] @ solution(task), stacked[0] @ best, rtol=0, atol=1e-7)


def test_how_the_data_is_cut_changes_nothing_and_several_penalties_take_one_pass():
    task, data = Reservoir(), list(sequences())
    readout = RidgeReadout(task, task.readout).add(lanes_of(data[:3])).add(lanes_of(data[3:] + data[:2]))
    other = RidgeReadout(task, task.readout)
    other.add(SequenceLanes(data[:3] + data[3:] + data[:2], 1, 50, burn_in=BURN_IN, mask="mask", dtypes=torch.float64))
    for l2 in (0.1, 2.0, 0.1):
        expected = solution(readout.solve(l2).task).clone()
        assert_close(solution(other.solve(l2).task), expected, rtol=1e-10, atol=1e-10)


def test_a_task_that_carries_no_state_is_fitted_to_windows_from_the_initial_state():
    def solved(task, batches):
        return solution(RidgeReadout(task, task.readout).add(batches).solve(0.1).task).clone()

    batches, carried = list(lanes_of(sequences(), burn_in=0)), Reservoir()
    every = torch.ones(3, dtype=torch.bool)
    reset = [batch._replace(windows=tuple(window.with_reset(every) for window in batch.windows)) for batch in batches]
    expected, whole = solved(carried, reset), solved(carried, batches)
    carried.carry_state = False
    assert_close(solved(carried, batches), expected, rtol=0, atol=0)
    assert not torch.allclose(whole, expected, rtol=0.01)


def test_one_output_needs_no_axis():
    task, data = Squeezed(1), list(sequences(1))
    RidgeReadout(task, task.readout).add(lanes_of(data)).solve(0.1)
    flat = [each | {"targets": each["targets"][:, 0]} for each in data]
    expected = solution(task).clone()
    RidgeReadout(task, task.readout).add(lanes_of(flat)).solve(0.1)
    assert_close(solution(task), expected, rtol=0, atol=0)


def test_it_leaves_everything_but_the_readout_as_it_was():
    task, data = Reservoir(), list(sequences())
    task.core.eval()
    task.noise = "of training"
    before = {name: value.clone() for name, value in task.core.state_dict().items()}
    RidgeReadout(task, task.readout).add(lanes_of(data)).solve(0.1)
    assert_close(dict(task.core.state_dict()), before, rtol=0, atol=0)
    assert (task.training, task.drop.training, task.core.training, task.noise) == (True, True, False, None)
    assert not task.readout._forward_hooks
    assert task.readout.weight.requires_grad
    assert task.readout.weight.grad is None


def over_ranks(num_lanes):
    rank = Rank(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))
    dist.init_process_group("gloo", rank=rank.number, world_size=rank.num_ranks)
    task = Reservoir()
    lanes = SequenceLanes(
        list(sequences()), num_lanes, 5, burn_in=BURN_IN, mask="mask", dtypes=torch.float64, rank=rank
    )
    batches = lanes if lanes.local_lanes else [Batch((Window(torch.zeros(0, 1), None),), {})]
    readout = RidgeReadout(task, task.readout, rank).add(batches).solve(0.1)
    with pytest.raises(InputError, match="no target has been counted"):
        RidgeReadout(task, task.readout, rank).solve(0.1)
    dist.destroy_process_group()
    return solution(task), readout.num_targets


@pytest.mark.parametrize(
    "num_lanes", [pytest.param(3, marks=pytest.mark.slow), 1]
)  # with one lane, the second rank has none
def test_ranks_add_up(num_lanes, tmp_path):
    (ours, some), (theirs, others) = together(tmp_path, 2, over_ranks, num_lanes)
    task, data = Reservoir(), list(sequences())
    whole = RidgeReadout(task, task.readout).add(lanes_of(data)).solve(0.1)
    assert_close(ours, theirs, rtol=0, atol=0)
    assert_close(ours, solution(task), rtol=1e-10, atol=1e-10)
    assert some + others == whole.num_targets
    assert (others == 0) == (num_lanes == 1)


class Doubled(Reservoir):
    def predict_window(self, window, state):
        outputs, state = super().predict_window(window, state)
        return 2 * outputs, state


class Twice(Reservoir):
    def predict_window(self, window, state):
        super().predict_window(window, state)
        return super().predict_window(window, state)


class NoOutputs(Reservoir):
    predict_window = Task.predict_window


def batch(inputs, targets):
    return [Batch((Window(inputs, targets),), {})]


NUMBERS = torch.arange(12, dtype=torch.float64).view(2, 6).sin()
PAIRS = NUMBERS[..., None].expand(2, 6, 2)


@pytest.mark.parametrize(
    ("task", "data", "l2", "message"),
    [
        (Reservoir, batch(NUMBERS, torch.ones(2, 6, dtype=torch.long)), 1, "targets of torch.int64: ridge .* gradient"),
        (Reservoir, batch(NUMBERS, {"a": PAIRS}), 1, "targets of dict: ridge regression needs one tensor"),
        (Reservoir, batch(NUMBERS, None), 1, "targets of NoneType"),
        (Reservoir, batch(NUMBERS, NUMBERS), 1, r"targets of the shape \(2, 6\) for outputs of \(2, 6, 2\)"),
        (Reservoir, batch(NUMBERS, PAIRS / 0), 1, "nan or inf at a scored time step"),
        (Reservoir, batch(NUMBERS * torch.nan, PAIRS), 1, "nan or inf at a scored time step"),
        (Reservoir, batch(NUMBERS, PAIRS), -1.0, "l2=-1.0: must be a number, 0 or more"),
        (Reservoir, batch(NUMBERS, PAIRS), math.inf, "l2=inf: must be a number, 0 or more"),
        (Reservoir, batch(NUMBERS[:1, :5], PAIRS[:1, :5]), 0.0, "7 inputs are linearly dependent.* 5 targets"),
        (Reservoir, [], 0.0, r"no target has been counted: call add\(batches\) first"),
        (Doubled, batch(NUMBERS, PAIRS), 1, "Doubled.predict_window returns something else"),
        (Twice, batch(NUMBERS, PAIRS), 1, "Twice.predict_window calls it 2 times per window"),
        (NoOutputs, [], 1, r"NoOutputs must define predict_window\(window, state\)"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_a_sentence(task, data, l2, message):
    task = task()
    with pytest.raises(InputError, match=message):
        RidgeReadout(task, task.readout).add(data).solve(l2)


def test_another_layer_is_refused():
    task = Reservoir()
    with pytest.raises(InputError, match=r"readout is a EchoState: it must be the torch.nn.Linear"):
        RidgeReadout(task, task.core)
    with pytest.raises(InputError, match="calls it 0 times per window"):
        RidgeReadout(task, nn.Linear(6, 2)).add(batch(NUMBERS, PAIRS))


def test_windows_are_no_batches():
    task = Reservoir()
    with pytest.raises(InputError, match="batches has a Window: give an iterable of Batches"):
        RidgeReadout(task, task.readout).add([batch(NUMBERS, PAIRS)[0].windows[0]])
