"""Random cuts: over all of them, weighted by their probabilities, the gradient is the full one."""

import itertools
import math

import numpy as np
import pytest
import torch
from descent import Descent
from tasks import windows_of
from torch.testing import assert_close

from lit_tbptt import FallingProbability, InputError, Place, RandomTruncation, Run, Task, Truncation

LANES, K1, WINDOWS = 3, 2, 8


class Cell(Task, torch.nn.Module):
    """A GRU cell with a learned initial state; the loss is over the scored time steps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(11)
        self.cell, self.start = torch.nn.GRUCell(1, 4), torch.nn.Parameter(torch.randn(4))
        self.double()

    def initial_state(self, num_lanes):
        return {"h": self.start.expand(num_lanes, -1), "count": torch.zeros(num_lanes, dtype=torch.long)}

    def window_loss(self, window, state):
        h, outputs = state["h"], []
        for x in window.inputs.unbind(1):
            h = self.cell(x[:, None], h)
            outputs.append(h.sum(-1))
        mask = window.mask_or_ones()
        errors = (torch.stack(outputs, 1) - window.targets)[mask]
        return errors.square().sum(), errors.numel(), {"h": h, "count": state["count"] + window.num_time_steps}


class Given(RandomTruncation):
    """Cuts after given windows."""

    def __init__(self, cuts, probability):
        super().__init__(probability)
        self.cuts = cuts

    def draw(self, window):
        return 0.0 if window in self.cuts else math.nextafter(1.0, 0.0)


class Frozen(Descent):
    """Adds up gradients over steps, and changes no weight."""

    def __init__(self, task):
        super().__init__(task, 0.0)

    def zero_grad(self):
        pass


def windows():
    inputs = torch.randn(LANES, K1 * WINDOWS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = windows_of(inputs, inputs.roll(3, 1), K1, resets=[(3, 1), (6, 0)])
    nothing = torch.zeros(LANES, K1, dtype=torch.bool)
    partly = torch.tensor([[True, False], [False, False], [True, True]])
    found[2], found[4] = found[2]._replace(mask=partly), found[4]._replace(mask=nothing)
    return found


def gradient(update, reduction="mean"):
    task = Cell()
    run, optimizer, carry = Run(task, Truncation(K1), loss_reduction=reduction), Frozen(task), None
    update.begin(run)
    data = windows()
    scored = tuple(bool(window.mask_or_ones().any()) for window in data)
    for number, window in enumerate(data):
        process = update if scored[number] else update.pass_over
        carry = process(window, carry, run, optimizer, Place(number, number, scored, True)).carry
    return [part.grad for part in task.parameters()], len(optimizer.factors)


def full_gradient(reduction):
    task, state, total = Cell(), Cell().initial_state(LANES), 0.0
    initial = task.initial_state(LANES)
    for number, window in enumerate(windows()):
        reset = torch.ones(LANES, dtype=torch.bool) if number == 0 else window.reset_or_zeros()
        h = torch.where(reset[:, None], initial["h"], state["h"])
        loss, count, state = task.window_loss(window, {"h": h, "count": state["count"]})
        total = total + (loss / max(1, count) if reduction == "mean" else loss)
    total.backward()
    return [part.grad for part in task.parameters()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("probability", [0.3, lambda length: 0.9 / (length + 1)], ids=["constant", "falling"])
def test_the_expected_gradient_is_the_full_one(probability, reduction):
    expected, total = [torch.zeros_like(part) for part in Cell().parameters()], 0.0
    for bits in itertools.product([False, True], repeat=WINDOWS - 1):
        update, chance, length = Given({number for number, cut in enumerate(bits) if cut}, probability), 1.0, 0
        for cut in bits:
            length += 1
            c = update.cut_probability(length)
            chance, length = chance * (c if cut else 1 - c), 0 if cut else length
        found, _ = gradient(update, reduction)
        expected = [one + chance * other for one, other in zip(expected, found, strict=True)]
        total += chance
    assert total == pytest.approx(1.0, abs=1e-14)
    assert_close(expected, full_gradient(reduction), rtol=0, atol=1e-12)


def test_a_certain_cut_is_a_step_per_window():
    found, steps = gradient(RandomTruncation(1.0))
    always, _ = gradient(Given(set(range(WINDOWS)), 0.25))
    assert_close(found, always, rtol=0, atol=0)
    assert steps == WINDOWS - 1  # one window has no target


def test_cuts_are_drawn_from_seed_and_window_and_the_epoch_ends_a_segment():
    def stops(seed, first=0):
        task = Cell()
        update, run, carry, found = RandomTruncation(0.3, seed), Run(task, Truncation(K1)), None, []
        update.begin(run)
        one = windows()[0]
        for number in range(first, first + 40):
            place = Place(number, last_batch=number % 20 == 19)
            result = update(one, carry, run, Frozen(task), place)
            carry = result.carry
            assert not carry.state["h"].requires_grad
            if result.stepped:
                found.append(number)
                task.zero_grad()
        return found

    assert stops(1) == stops(1) != stops(2)
    assert {19, 39} <= set(stops(1))
    assert [number for number in stops(1) if number >= 20] == [number for number in stops(1, 20) if number < 40]


def test_the_lengths_of_segments():
    falling, generator = FallingProbability(mean_length=10.0, tail=4.0), np.random.default_rng(5)
    lengths = []
    for _ in range(20_000):
        length = 1
        while generator.random() >= falling(length):
            length += 1
        lengths.append(length)
    assert np.mean(lengths) == pytest.approx(10, rel=0.1)
    assert FallingProbability(1.0, 9.0)(1) == 1.0
    with pytest.raises(InputError, match="tail=inf: must be a number above 2"):
        FallingProbability(tail=math.inf)
    constant = RandomTruncation(1 / 16)
    survived = np.cumprod([1 - constant.cut_probability(length) for length in range(1, 107)])
    assert survived[-1] == pytest.approx(0.001, abs=1e-4)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed=-1: must be 0 or more"):
        RandomTruncation(seed=-1)


@pytest.mark.parametrize("probability", [0.0, 1.2, float("nan")])
def test_a_probability_out_of_range_is_refused(probability):
    with pytest.raises(InputError, match=r"probability=.*: must be a number above 0 and at most 1"):
        RandomTruncation(probability)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="k2=5 with k1=2 and RandomTruncation"):
        RandomTruncation().begin(Run(Cell(), Truncation(K1, 5)))
    with pytest.raises(InputError, match=r"probability: it is 1.5 after 2 windows"):
        RandomTruncation(lambda length: 0.75 * length).cut_probability(2)
    with pytest.raises(InputError, match=r"mean_length=0.5"):
        FallingProbability(0.5)
