"""Windows of varying length in training: each step is multiplied by its window's length over the mean."""

from functools import partial

import pytest
import torch
from letters import strided
from loops import Rates, Recording, SavedAt, batches, by_hand, fit, pair, same_weights
from tasks import Regression
from torch.optim import SGD, AdamW

from lit_tbptt import InputError, NormalLengths, RandomTruncation, Window

MEAN, RATE = 6, 0.4
LETTERS = "".join(chr(97 + i * i % 26) for i in range(65))


class OfLetters(Regression):
    """Predicts the next letter's number."""

    def __init__(self, **options):
        super().__init__(lr=RATE, k1=9, **options)

    def window_loss(self, window, state):
        return super().window_loss(Window(window.inputs.double() / 26, window.targets.double() / 26), state)


def lanes(windows_per_batch=1):
    """Three lanes of 22 tokens."""
    return strided([LETTERS], 3, 9, windows_per_batch, window_lengths=NormalLengths(MEAN, 3, 1, 0.3))


def windows_by_epoch():
    found = []
    for epoch in range(2):
        made = lanes()
        made.set_epoch(epoch)
        found.append([window for batch in made for window in batch.windows])
    return found


def letters_pair(**options):
    torch.manual_seed(2)
    first = OfLetters(**options)
    torch.manual_seed(2)
    return first, OfLetters(**options)


@pytest.mark.parametrize("windows_per_batch", [1, 3])
@pytest.mark.parametrize("clip_norm", [None, 0.02])
def test_sgd_with_clipping_equals_the_loop_by_hand(windows_per_batch, clip_norm):
    model, expected = letters_pair(clip_norm=clip_norm)
    trainer = fit(model, lanes(windows_per_batch))
    epochs = windows_by_epoch()
    lengths = [[window.num_time_steps for window in windows] for windows in epochs]
    assert lengths[0] != lengths[1]
    assert [sum(each) for each in lengths] == [22, 22]
    for windows, each in zip(epochs, lengths, strict=True):
        by_hand(expected, windows, 1, clip_norm, [RATE * length / MEAN for length in each])
    same_weights(model, expected)
    assert trainer.global_step == sum(map(len, lengths))


def test_the_factor_is_no_part_of_the_learning_rate(tmp_path):
    """Logged, saved and scheduled is the rate before it."""
    model, expected = letters_pair(schedule=_halved)
    rates, log, path = Rates(), Recording(), tmp_path / "third.ckpt"
    fit(model, lanes(), logger=log, callbacks=[rates, SavedAt(path, 3)])
    epochs, step = windows_by_epoch(), 0
    for windows in epochs:
        factors = [window.num_time_steps / MEAN for window in windows]
        by_hand(expected, windows, 1, None, [RATE * 0.5 ** (step + i) * factor for i, factor in enumerate(factors)])
        step += len(windows)
    same_weights(model, expected)
    assert rates.seen == [RATE * 0.5 ** (i + 1) for i in range(step)]
    assert [row["train/lr"] for row in log.rows if "train/lr" in row] == rates.seen
    saved = torch.load(path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == RATE / 8
    assert saved["lr_schedulers"][0]["_last_lr"] == [RATE / 8]


def _halved(optimizer):
    return {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}


@pytest.mark.parametrize(
    ("optimizer", "rule", "groups"),
    [
        (SGD, {"windows_per_step": 2}, [2, 2, 2]),
        (SGD, {"update": RandomTruncation(1e-9)}, [6]),
        # The weight decay is scaled with the rate that multiplies it.
        (partial(AdamW, weight_decay=0.3), {}, [1] * 6),
    ],
    ids=["windows_per_step", "random truncation", "AdamW"],
)
def test_a_step_is_multiplied_by_the_mean_of_its_windows_factors(optimizer, rule, groups):
    """As by a schedule with these rates."""
    factors, means = [0.5, 1.5, 0.25, 0.75, 1.0, 3.0], []
    for size in groups:
        means.append(sum(factors[sum(groups[: len(means)]) :][:size]) / size)

    def schedule(optimizer):
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [*means, 0][step])
        return {"scheduler": rates, "interval": "step"}

    model, expected = pair(k1=11, **rule)
    model.configure_optimizers = lambda: optimizer(model.parameters(), RATE)
    expected.configure_optimizers = lambda: _scheduled(optimizer(expected.parameters(), RATE), schedule)
    data = batches(11, 6)
    fit(expected, data, max_epochs=1)
    data.batches = [batch._replace(step_factors=tuple(factors)) for batch in data.batches]
    fit(model, data, max_epochs=1)
    same_weights(model, expected)


def _scheduled(optimizer, schedule):
    return {"optimizer": optimizer, "lr_scheduler": schedule(optimizer)}


def test_each_window_of_a_batch_needs_a_factor():
    data = batches(11, 6)
    data.batches = [batch._replace(step_factors=(0.5, 1.0)) for batch in data.batches]
    with pytest.raises(InputError, match="step_factors: a batch of 6 windows has 2 of them"):
        fit(pair(k1=11)[0], data)
