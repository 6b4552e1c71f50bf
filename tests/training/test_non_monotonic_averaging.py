"""NT-ASGD: against a loop written out; what validation, checkpoints and the end of a fit get."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from loops import LANES, Lazily, SavedAt, batches, by_hand, fit, pair, same_weights, sequence
from tasks import Batches, Regression, windows_of
from torch.testing import assert_close

from lit_tbptt import InputError, NonMonotonicAveraging, NormalLengths, RunCheckpoint
from lit_tbptt.files.checkpoint import read_checkpoint

K1, EVERY, PATIENCE, RATE = 5, 2, 2, 0.5
EVERY_TWO = {"val_check_interval": EVERY, "check_val_every_n_epoch": None}


def validation():
    return Batches(windows_of(*(part[:, :35] for part in sequence(70)), K1 + 2))


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _mean(weights):
    return {name: sum(each[name] for each in weights) / len(weights) for name in weights[0]}


class Seen(Callback):
    """Keeps the weights of every step, of every validation, and after it; and what is logged."""

    def __init__(self):
        self.steps, self.validated, self.after, self.losses = [], [], [], []

    def on_step_end(self, trainer, module):
        self.steps.append(weights_of(module))

    def on_validation_batch_start(self, trainer, module, *args):
        self.inside = weights_of(module)

    def on_validation_end(self, trainer, module):
        self.validated.append(self.inside)
        self.after.append(weights_of(module))
        self.losses.append(float(trainer.callback_metrics.get("val/loss", 0)))


def run(module, callback, *more, epochs=3, data=None, resume=None, **options):
    seen = Seen()
    settings = {"max_epochs": epochs} | EVERY_TWO | options
    trainer = fit(module, data or Lazily(1), validation(), resume, callbacks=[seen, callback, *more], **settings)
    return trainer, seen


def validation_loss(model):
    total, count, state = 0.0, 0, model.initial_state(LANES)
    with torch.no_grad():
        for batch in validation():
            for window in batch.windows:
                loss, targets, state = model.window_loss(window, state)
                total, count = total + float(loss), count + targets
    return total / count


def written_out(model, epochs=3):
    """The authors' algorithm: the losses, the step where averaging starts, the trained weights, and their mean."""
    model.double()
    losses, step, first, sums, num = [], 0, None, None, 0
    for _ in range(epochs):
        state = None
        for batch in batches(K1):
            window = batch.windows[0]
            state = model.initial_state(LANES) if window.reset is not None else state
            loss, count, state = model.window_loss(window, state.detach())
            gradients = torch.autograd.grad(loss / count, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= RATE * gradient
            step += 1
            if first is not None:
                sums, num = {name: sums[name] + value for name, value in model.state_dict().items()}, num + 1
            if step % EVERY == 0:
                averaged = copy.deepcopy(model)
                if first is not None:
                    averaged.load_state_dict({name: value / num for name, value in sums.items()})
                losses.append(validation_loss(averaged))
                before = losses[:-1]
                if first is None and len(before) > PATIENCE and losses[-1] > min(before[:-PATIENCE]):
                    first, sums, num = step, weights_of(model), 1
    return losses, first, weights_of(model), {name: value / num for name, value in sums.items()}


def test_it_is_the_algorithm_written_out():
    model, expected = pair(k1=K1, lr=RATE)
    averaging = NonMonotonicAveraging(PATIENCE)
    trainer, seen = run(model, averaging)
    losses, first, trained, averages = written_out(expected)
    assert first == averaging.first_step
    assert 2 * EVERY * PATIENCE < first < trainer.global_step - 2 * EVERY
    assert_close(seen.steps[-1], trained, rtol=0, atol=1e-10)
    assert_close(weights_of(model), averages, rtol=0, atol=1e-10)
    assert_close(torch.tensor(seen.losses), torch.tensor(losses), rtol=1e-6, atol=0)  # Lightning rounds to float32
    assert averaging.losses == seen.losses[: first // EVERY]


def test_the_steps_and_averages_are_those_of_torchs_asgd():
    """Whose average begins two steps after its `t0`."""
    model, expected = pair(k1=K1, lr=RATE)
    averaging = NonMonotonicAveraging(PATIENCE)
    run(model, averaging)
    expected.double()
    optimizer = torch.optim.ASGD(expected.parameters(), RATE, lambd=0.0, t0=averaging.first_step - 2)
    for _ in range(3):
        state = expected.initial_state(LANES)
        for batch in batches(K1):
            loss, count, state = expected.window_loss(batch.windows[0], state.detach())
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
    averages = [optimizer.state[parameter]["ax"] for parameter in expected.parameters()]
    # It computes in float32 what the difference to a new weight is multiplied by.
    assert_close(list(model.parameters()), averages, rtol=0, atol=1e-6, check_dtype=False)


def test_validations_get_the_average_and_training_its_own_weights(tmp_path):
    model, _ = pair(k1=K1, lr=0.3)
    averaging = NonMonotonicAveraging(PATIENCE)
    trainer, seen = run(model, averaging, RunCheckpoint(), enable_checkpointing=True, default_root_dir=tmp_path)
    first = averaging.first_step
    for number, (validated, after) in enumerate(zip(seen.validated, seen.after, strict=True), 1):
        step = EVERY * number
        of_steps = seen.steps[step - 1 : step] if step <= first else seen.steps[first - 1 : step]
        assert_close(validated, _mean(of_steps), rtol=0, atol=1e-12)
        assert_close(after, seen.steps[step - 1], rtol=0, atol=0)
    best, last = (read_checkpoint(path) for path in _saved(trainer))
    number = seen.losses.index(min(seen.losses))
    assert EVERY * (number + 1) > first, "the best one is to be an average"
    assert_close(dict(best["state_dict"]), seen.validated[number], rtol=0, atol=0)
    assert_close(dict(best["current_model_state"]), seen.after[number], rtol=0, atol=0)
    assert_close(dict(last["state_dict"]), weights_of(model), rtol=0, atol=0)
    trained = weights_of(model)
    trainer.validate(model, validation(), verbose=False)
    assert_close(weights_of(model), trained, rtol=0, atol=0)
    trainer.validate(model, validation(), ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False)
    assert_close(weights_of(model), seen.validated[number], rtol=0, atol=0)
    assert float(trainer.callback_metrics["val/loss"]) == seen.losses[number]


@pytest.mark.parametrize("make", [lambda: NonMonotonicAveraging(PATIENCE), lambda: EMAWeightAveraging(decay=0.7)])
def test_a_finished_run_that_is_resumed_ends_with_the_average_again(make, tmp_path):
    model, other = pair(k1=K1, lr=RATE)
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer, _ = run(model, make(), RunCheckpoint(), **options)
    options["default_root_dir"] = tmp_path / "resumed"
    _, seen = run(other, make(), RunCheckpoint(), resume=_saved(trainer)[1], **options)
    assert not seen.steps
    assert_close(weights_of(other), weights_of(model), rtol=0, atol=0)


class Failing(Callback):
    def on_step_end(self, trainer, module):
        if trainer.global_step == 20:
            raise RuntimeError("no more steps")


def test_evaluations_after_a_fit_that_failed_are_of_the_checkpoints_weights(tmp_path):
    model, other = pair(k1=K1, lr=0.3)
    averaging, path = NonMonotonicAveraging(PATIENCE), tmp_path / "saved.ckpt"
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        callbacks=[averaging, SavedAt(path, 19), Failing()], **options, **EVERY_TWO, max_epochs=3, precision="64-true"
    )
    with pytest.raises(RuntimeError, match="no more steps"):
        trainer.fit(model, Lazily(1), validation())
    assert averaging.first_step is not None
    other.load_state_dict(read_checkpoint(path)["state_dict"])
    for kind in ("validate", "test"):
        values = getattr(trainer, kind)(model, validation(), ckpt_path=path, verbose=False)
        assert values == getattr(Trainer(**options, precision="64-true"), kind)(other, validation(), verbose=False)


def test_without_validations_it_says_that_it_averages_nothing():
    model, _ = pair(k1=K1, lr=0.3)
    with pytest.warns(UserWarning, match="without validations, weights are never averaged"):
        fit(model, Lazily(1), callbacks=[NonMonotonicAveraging()], max_epochs=1)


def test_a_checkpoint_of_the_end_is_continued_without_an_average(tmp_path):
    model, other = pair(k1=K1, lr=0.3)
    trainer, _ = run(model, NonMonotonicAveraging(PATIENCE))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    averaging = NonMonotonicAveraging(PATIENCE)
    run(other, averaging, resume=tmp_path / "end.ckpt", epochs=3)
    assert averaging.first_step is None
    assert_close(weights_of(other), weights_of(model), rtol=0, atol=0)


def _saved(trainer):
    return trainer.checkpoint_callback.best_model_path, trainer.checkpoint_callback.last_model_path


@pytest.mark.parametrize("step", [4, 15, 16, 17, 18, 26])
def test_a_run_stopped_at_any_time_ends_with_the_same_weights(step, tmp_path):
    model, other = pair(k1=K1, lr=RATE)
    whole, resumed = NonMonotonicAveraging(PATIENCE), NonMonotonicAveraging(PATIENCE)
    path = tmp_path / "stopped.ckpt"
    _, seen = run(model, whole, SavedAt(path, step))
    saved = torch.load(path, weights_only=True)
    assert ("current_model_state" in saved) == (whole.first_step <= step)
    _, rest = run(other, resumed, resume=path)
    assert_close(rest.steps, seen.steps[step:], rtol=0, atol=0)
    assert_close(weights_of(other), weights_of(model), rtol=0, atol=0)
    assert (resumed.losses, resumed.first_step) == (whole.losses, whole.first_step)


def test_it_does_not_change_a_step_of_windows_of_varying_length():
    data = batches(K1)
    lengths = NormalLengths(K1, 2, 1, 0.3)(0, 0, len(data))
    data.batches = [
        batch._replace(step_factors=(length / K1,)) for batch, length in zip(data.batches, lengths, strict=True)
    ]
    model, plain = pair(k1=K1, lr=RATE)
    averaging = NonMonotonicAveraging(0)
    _, seen = run(model, averaging, data=data)
    _, expected = run(plain, Callback(), data=data)
    assert_close(seen.steps, expected.steps, rtol=0, atol=0)
    of_steps = seen.steps[averaging.first_step - 1 :]
    assert 2 < len(of_steps) < len(seen.steps)
    assert_close(weights_of(model), _mean(of_steps), rtol=0, atol=1e-12)


def test_a_batch_without_a_step_counts_no_weights_twice():
    data = batches(K1)
    data.batches = [batch._replace(scored=(number % 2 == 1,)) for number, batch in enumerate(data.batches)]
    model, _ = pair(k1=K1, lr=RATE)
    averaging = NonMonotonicAveraging(0)
    _, seen = run(model, averaging, data=data)
    assert averaging.first_step < len(seen.steps) - 2
    assert_close(weights_of(model), _mean(seen.steps[averaging.first_step - 1 :]), rtol=0, atol=1e-12)


def test_torchs_asgd_uses_the_rate_of_the_step_before_and_is_refused_for_such_windows():
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.ASGD([weight], 1.0, lambd=0.0, t0=float("inf"))
    places = []
    for rate in (1.0, 10.0, 100.0):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = -torch.ones_like(weight)
        optimizer.step()
        places.append(float(weight.detach()))
    assert places == [1.0, 2.0, 12.0]
    data, (model, _) = batches(K1), pair(k1=K1)
    data.batches = [batch._replace(step_factors=(0.5,)) for batch in data.batches]
    model.configure_optimizers = lambda: torch.optim.ASGD(model.parameters(), RATE)
    with pytest.raises(InputError, match="optimizer=ASGD with windows of varying length"):
        fit(model, data)


def test_a_loss_that_falls_starts_no_average():
    class Falling(Regression):
        def describe_loss(self, mean_loss, source):
            return {"loss": -self.trainer.global_step}

    torch.manual_seed(2)
    model, averaging = Falling(k1=K1), NonMonotonicAveraging(0)
    run(model, averaging, epochs=1)
    assert averaging.first_step is None
    assert averaging.losses == [-2, -4, -6, -8, -10, -12]
    same_weights(model, by_hand(pair(k1=K1)[0], [batch.windows[0] for batch in batches(K1)], 1))


def test_a_validation_before_training_and_one_without_a_finite_loss_do_not_count():
    class Overflowing(Regression):
        def describe_loss(self, mean_loss, source):
            return {"loss": [4.0, 3.0, float("nan"), float("inf"), 2.0, 3.5, 1.0][self.trainer.global_step // EVERY]}

    averaging = NonMonotonicAveraging(1)
    run(Overflowing(k1=K1), averaging, epochs=1, num_sanity_val_steps=1)
    assert averaging.losses == [3.0, 2.0, 3.5]
    assert averaging.first_step == 5 * EVERY


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (NonMonotonicAveraging(-1), "NonMonotonicAveraging: patience=-1: must be 0 or more"),
        (NonMonotonicAveraging(), "NonMonotonicAveraging compares val/loss, which no validation has logged; there is"),
    ],
)
def test_what_cannot_be_is_refused(callback, message):
    class Renamed(Regression):
        def describe_loss(self, mean_loss, source):
            return {"error": mean_loss}

    with pytest.raises(InputError, match=message):
        run(Renamed(k1=K1), callback)
