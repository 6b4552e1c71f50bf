"""An update of a user's own in the loop, and noise that evaluation does not see."""

import pytest
import torch
from lightning.pytorch import Callback
from loops import LANES, batches, fit, pair, same_weights, sequence
from tasks import Regression, windows_of

from lit_tbptt import Batch, InputError, RunCheckpoint, Update, Updated


class EveryOther(Update):
    """A step after every second window, with the sum of both gradients, and after a batch's last window."""

    def __init__(self, heeds_ends=True):
        self.waiting, self.heeds_ends = False, heeds_ends

    def __call__(self, window, carry, run, optimizer, place):
        cost = run(window, carry)
        if not self.waiting:
            optimizer.zero_grad()
        optimizer.backward(run.objective(cost))
        stepped = self.waiting or (place.ends_batch and self.heeds_ends)
        if stepped:
            optimizer.step()
        self.waiting = not stepped
        return Updated(cost.carry.detach(), cost.total_loss, cost.total_targets, stepped)


class Counts(Callback):
    def __init__(self):
        self.windows, self.steps = [], []

    def on_window_end(self, trainer, module, window):
        self.windows.append((module.position.window, module.position.step))

    def on_step_end(self, trainer, module):
        self.steps.append((module.position.window, module.position.step, trainer.global_step))


def by_hand(model, windows):
    model.double()
    for _ in range(2):
        state = model.initial_state(LANES)
        for number, window in enumerate(windows):
            loss, count, state = model.window_loss(window, state.detach())
            (loss / count).backward()
            if number % 2 or number == len(windows) - 1:
                with torch.no_grad():
                    for weight in model.parameters():
                        weight -= model.lr * weight.grad
                        weight.grad = None
    return model


@pytest.mark.parametrize("windows_per_batch", [2, 4, 6])
def test_windows_and_steps_are_counted_apart(windows_per_batch):
    model, expected = pair(k1=5, lr=0.05)
    model.update, counts = EveryOther(), Counts()
    trainer = fit(model, batches(5, windows_per_batch), callbacks=[counts])
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5)))
    assert trainer.global_step == 14
    steps = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 14]
    assert counts.windows == list(enumerate(steps, 1))
    assert [step for _, step, _ in counts.steps] == [step for *_, step in counts.steps] == list(range(1, 15))
    assert [window for window, *_ in counts.steps] == [2, 4, 6, 8, 10, 12, 13, 15, 17, 19, 21, 23, 25, 26]


def test_max_steps_counts_steps_and_not_windows():
    model = Regression(k1=5)
    model.update = EveryOther()
    trainer = fit(model, batches(5, 4), max_epochs=-1, max_steps=9)
    assert (trainer.global_step, model.position.window) == (9, 17)


@pytest.mark.parametrize("windows_per_batch", [2, 3])
def test_a_batch_that_ends_without_a_step_is_refused(windows_per_batch):
    model = Regression(k1=5)
    model.update = EveryOther(heeds_ends=False)
    with pytest.raises(InputError, match=r"EveryOther made no step after the last of \d windows of a batch"):
        fit(model, batches(5, windows_per_batch))


def masked_batches(heard):
    """Batches of four windows, of which those that are not among `heard` have no target."""
    windows = windows_of(*sequence(60), 5)
    windows = [each._replace(mask=torch.full((LANES, 5), number in heard)) for number, each in enumerate(windows)]
    loader = batches(5, 4)
    flags = [tuple(number in heard for number in range(at, at + 4)) for at in (0, 4, 8)]
    loader.batches = [
        Batch(tuple(windows[4 * at : 4 * at + 4]), {"window": 4 * at}, None, some, scored_here=True)
        for at, some in enumerate(flags)
    ]
    return loader


class Masked(Regression):
    def window_loss(self, window, state):
        outputs, state = self.core(window.inputs.unsqueeze(-1), state.unsqueeze(0).contiguous())
        errors = (self.head(outputs).squeeze(-1) - window.targets).square()[window.mask_or_ones()]
        return errors.sum(), errors.numel(), state.squeeze(0)


def test_a_batch_in_which_windows_are_passed_over_ends_with_a_step():
    model, counts = Masked(k1=5), Counts()
    model.update = EveryOther()
    fit(model, masked_batches({0, 1, 3, 8, 9, 10, 11}), max_epochs=1, callbacks=[counts])
    assert [window for window, *_ in counts.steps] == [2, 4, 10, 12]


class Noisy(Regression):
    def begin_window(self, num_lanes):
        return torch.full((num_lanes, 1), 7.0)

    def window_loss(self, window, state):
        self.seen.add((self.training, self.noise is None))
        return super().window_loss(window, state)


def test_the_noise_of_training_is_gone_in_evaluation():
    model = Noisy(k1=5)
    model.seen = set()
    fit(model, batches(5, 4), batches(5, 3))
    assert model.seen == {(True, False), (False, True)}


def test_hyperparameters_that_no_checkpoint_can_hold_are_refused_at_the_start(tmp_path):
    class Keeping(Regression):
        def __init__(self, act=None, width=3, **options):
            super().__init__(**options)
            self.save_hyperparameters("act", "width")

    with pytest.raises(InputError, match=r"Keeping.save_hyperparameters\(\) keeps act, .*ignore=\['act'\]"):
        fit(
            Keeping(tmp_path, k1=5),
            batches(5),
            callbacks=[RunCheckpoint()],
            enable_checkpointing=True,
            default_root_dir=tmp_path,
        )
    fit(
        Keeping(k1=5),
        batches(5),
        max_epochs=1,
        callbacks=[RunCheckpoint()],
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
