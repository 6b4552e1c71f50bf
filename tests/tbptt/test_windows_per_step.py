"""One step for several windows, against gradients of hand-cut windows that are added up."""

import pytest
import torch
from descent import Descent
from tasks import windows_of
from torch.testing import assert_close

from lit_tbptt import InputError, Place, Run, StepPerWindows, Task, Truncation

LANES, K1, STEPS = 3, 5, 37  # 8 windows, the last of 2 time steps


class Filter(Task, torch.nn.Module):
    """h = tanh(w h + u x), squared error of h, over the scored time steps only."""

    def __init__(self, recurrent=True):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.float64))
        self.u = torch.nn.Parameter(torch.tensor(-0.6, dtype=torch.float64))
        self.recurrent = recurrent

    def initial_state(self, num_lanes):
        return torch.zeros(num_lanes, dtype=torch.float64)

    def window_loss(self, window, state):
        outputs = []
        for x in window.inputs.unbind(1):
            state = torch.tanh(self.w * (state if self.recurrent else 1.0) + self.u * x)
            outputs.append(state)
        mask = window.mask_or_ones()
        errors = (torch.stack(outputs, 1) - window.targets)[mask]
        return errors.square().sum(), int(mask.sum()), state


def masked_windows(unscored=()):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(LANES, STEPS, generator=generator, dtype=torch.float64)
    masks = torch.rand(LANES, STEPS, generator=generator) < 0.7
    windows = windows_of(inputs, inputs.roll(1, 1), K1)
    cut = [mask.clone() for mask in masks.split(K1, 1)]
    for number in unscored:
        cut[number][:] = False
    return [window._replace(mask=mask) for window, mask in zip(windows, cut, strict=True)]


def train(update, windows, reduction, windows_per_batch, task=None, first=0, **place):
    task = Filter() if task is None else task
    run, optimizer, carry, stepped = (
        Run(task, Truncation(K1, 8), loss_reduction=reduction),
        Descent(task, 0.3),
        None,
        [],
    )
    for start in range(0, len(windows), windows_per_batch):
        batch = windows[start : start + windows_per_batch]
        scored = tuple(bool(window.mask_or_ones().any()) for window in batch)
        for number, window in list(enumerate(batch))[first:]:
            here = Place(start + number, number, scored, start + windows_per_batch >= len(windows), **place)
            process = update if scored[number] else update.pass_over
            carry, _, _, steps = process(window, carry, run, optimizer, here)[:4]
            stepped.append(steps)
    return task, optimizer, stepped


def by_hand(windows, reduction, groups):
    task, truncation, carry = Filter(), Truncation(K1, 8), None
    weights = list(task.parameters())
    for group in groups:
        sums, targets = [torch.zeros((), dtype=torch.float64) for _ in weights], 0
        scored = [number for number in group if bool(windows[number].mask_or_ones().any())]
        for number in group:
            loss, count, carry, _ = truncation(task, windows[number], carry)
            carry = carry.detach()
            if count:
                parts = torch.autograd.grad(loss, weights)
                sums = [one + other for one, other in zip(sums, parts, strict=True)]
            targets += count
            if [number] != scored[-1:]:
                continue
            with torch.no_grad():
                for weight, gradient in zip(weights, sums, strict=True):
                    weight -= 0.3 * gradient / (targets if reduction == "mean" else 1)
    return task


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("windows_per_step", "windows_per_batch", "groups"),
    [
        (2, 4, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        (3, 6, [(0, 1, 2), (3, 4, 5), (6, 7)]),
        (3, 3, [(0, 1, 2), (3, 4, 5), (6, 7)]),
        (8, 8, [tuple(range(8))]),
    ],
)
def test_gradients_of_windows_are_added(windows_per_step, windows_per_batch, groups, reduction):
    windows = masked_windows()
    task, optimizer, stepped = train(StepPerWindows(windows_per_step), windows, reduction, windows_per_batch)
    expected = by_hand(windows, reduction, groups)
    assert_close(dict(task.state_dict()), dict(expected.state_dict()), rtol=0, atol=1e-12)
    ends = [group[-1] for group in groups]
    assert stepped == [number in ends for number in range(8)]
    assert optimizer.more == [number not in ends for number in range(8)]


def test_a_run_may_continue_inside_a_group_that_another_setting_began():
    windows = masked_windows()
    task, _, stepped = train(StepPerWindows(4), windows, "mean", 8, first=2)
    expected = by_hand(windows[2:], "mean", [(0, 1), (2, 3, 4, 5)])
    assert_close(dict(task.state_dict()), dict(expected.state_dict()), rtol=0, atol=1e-12)
    assert stepped == [False, True, False, False, False, True]


@pytest.mark.parametrize("unscored", [(1,), (0, 1), (2,), (5, 6, 7), (3, 4, 5)])
def test_windows_without_targets_belong_to_a_step_and_need_no_exchange(unscored):
    windows = masked_windows(unscored)
    task, optimizer, stepped = train(StepPerWindows(3), windows, "mean", 6)
    groups = [(0, 1, 2), (3, 4, 5), (6, 7)]
    expected = by_hand(windows, "mean", groups)
    assert_close(dict(task.state_dict()), dict(expected.state_dict()), rtol=0, atol=1e-12)
    ends = [max((n for n in group if n not in unscored), default=None) for group in groups]
    assert [number for number, steps in enumerate(stepped) if steps] == [end for end in ends if end is not None]
    assert optimizer.more.count(False) == sum(stepped)


def test_without_a_state_it_is_one_long_window():
    windows = masked_windows()
    one = Filter(recurrent=False)
    train(StepPerWindows(8), windows, "mean", 8, task=one)
    long = windows[0]
    for window in windows[1:]:
        long = long.join(window)
    other = Filter(recurrent=False)
    loss, count, _ = other.window_loss(long, other.initial_state(LANES))
    (loss / count).backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(mine.data, theirs.data - 0.3 * theirs.grad, rtol=0, atol=1e-12)


def test_the_factor_of_a_step_is_the_mean_of_its_windows():
    windows = masked_windows((1,))
    _, optimizer, _ = train(StepPerWindows(4), windows, "mean", 4, step_factor=0.25)
    assert optimizer.factors == [0.25, 0.25]


def test_steps_of_an_epoch():
    assert StepPerWindows(3).num_steps(8) == 3
    with pytest.raises(InputError, match="windows_per_step=0: must be a whole number, 1 or more"):
        StepPerWindows(0)
    with pytest.raises(InputError, match=r"windows_per_step=3 with 4 windows in a batch: .* a multiple of"):
        StepPerWindows(3).check_windows_per_batch(4)
