"""Dynamic evaluation: against a loop in plain torch, and without a trace in the model."""

import math
import re

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from loops import fit
from processes import together
from tasks import Batches
from torch.testing import assert_close
from torchmetrics import MeanSquaredError

from lit_tbptt import DynamicEvaluation, InputError, LitTBPTT, SequenceLanes, Window

LANES, TIME, SIZE = 3, 22, 4
DATA = 12  # time steps in a window of the data
EXACT = {"rtol": 0, "atol": 1e-10}


def run(weights, state, x):
    """h' = tanh(U h + v x), output o h'."""
    state = torch.tanh(state @ weights["recurrent"].T + x[:, None] * weights["input"])
    return state, state @ weights["output"]


class Tanh(LitTBPTT):
    def __init__(self, **options):
        super().__init__(**options)
        generator = torch.Generator().manual_seed(5)
        for name, shape in (("recurrent", (SIZE, SIZE)), ("input", (SIZE,)), ("output", (SIZE,))):
            values = torch.randn(shape, generator=generator, dtype=torch.float64) / SIZE**0.5
            setattr(self, name, torch.nn.Parameter(values))
        self.evaluation_metrics = MeanSquaredError()

    def initial_state(self, num_lanes):
        return self.output.new_zeros(num_lanes, SIZE)

    def predict_window(self, window, state):
        outputs = []
        for x in window.inputs.unbind(1):
            state, output = run(dict(self.named_parameters()), state, x)
            outputs.append(output)
        return torch.stack(outputs, 1), state

    def outputs_loss(self, outputs, window):
        errors = (outputs - window.targets).square()[window.mask_or_ones()]
        return errors.sum(), errors.numel()


def sequence(seed, masked=True):
    """Inputs, targets, mask and resets, `[lane, time]`; resets only where windows of 4 and of 12 time steps begin."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(LANES, TIME, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(LANES, TIME, generator=generator) > (0.3 if masked else -1)
    mask[:, 12:16] &= not masked  # a window without targets
    reset = torch.zeros(LANES, TIME, dtype=torch.bool)
    reset[:, 0] = reset[1, 12] = True
    return x, y, mask, reset


def batches_of(parts, length=DATA):
    windows = []
    for start in range(0, TIME, length):
        x, y, mask, reset = (part[:, start : start + length] for part in parts)
        windows.append(Window(x, y, reset[:, 0] if reset[:, 0].any() else None, mask))
    return Batches(windows)


def gradients_of(parts, weights, k1, k2, reduction, step):
    """Runs over time with horizon k2; `step(gradients)` is called after each window with targets."""
    x, y, mask, reset = parts
    states = {0: torch.zeros(LANES, SIZE, dtype=torch.float64)}
    loss, targets = 0.0, 0
    edges = [start for window in range(0, TIME, DATA) for start in range(window, min(window + DATA, TIME), k1)]
    for start, end in zip(edges, [*edges[1:], TIME], strict=True):
        first = max(0, start - (k2 - k1))
        state, total = states[first], 0.0
        leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
        for t in range(first, end):
            state = torch.where(reset[:, t, None], 0.0, state)
            states[t] = state.detach()
            state, output = run(leaves, state, x[:, t])
            if t >= start:
                total = total + ((output - y[:, t]).square() * mask[:, t]).sum()
        states[end] = state.detach()
        count = int(mask[:, start:end].sum())
        if count:
            total.backward() if reduction == "sum" else (total / count).backward()
            loss, targets = loss + total.item(), targets + count
            step({name: leaf.grad for name, leaf in leaves.items()})
    return loss / targets


class Data(LightningDataModule):
    """Splits of which a fit would train on other lanes."""

    def __init__(self, **splits):
        super().__init__()
        self.splits = splits

    def val_dataloader(self):
        return self.evaluation_dataloader("validation")

    def test_dataloader(self):
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split):
        return batches_of(self.splits[split])


def trainer_of(**options):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(**(settings | {"precision": "64-true"} | options))


def scores_of(model, data, **options):
    (values,) = trainer_of(**options).test(model, data, verbose=False)
    return values


# The data's windows of 12 and 10 time steps are cut to at most k1.
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 6), (4, 9), (5, 5)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_every_loss_is_that_of_the_weights_that_have_learnt_from_the_windows_before(k1, k2, reduction, rule):
    test, train = sequence(1), sequence(2)
    options: dict[str, float] = {"epsilon": 0.01} if k1 == 5 else {}
    evaluation = DynamicEvaluation(lr=0.02, decay=0.1, rule=rule, k1=k1, k2=k2, **options)
    model = Tanh(k1=7, loss_reduction=reduction, evaluation=evaluation)
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    rms, squares = None, []
    if rule == "rms":
        gradients_of(train, trained, k1, k2, reduction, squares.append)
        rms = {
            name: torch.stack([gradients[name] for gradients in squares]).square().mean(0).sqrt() for name in trained
        }
        mean = sum(each.mean() for each in rms.values()) / len(rms)
    weights = dict(trained)

    def step(gradients):
        for name, gradient in gradients.items():
            scale, rate = 1.0, torch.tensor(0.1, dtype=torch.float64)
            if rms is not None:
                scale, rate = rms[name] + options.get("epsilon", mean), (0.1 * rms[name] / mean).clamp(max=1)
            weights[name] = weights[name] - 0.02 * gradient / scale + rate * (trained[name] - weights[name])

    expected = gradients_of(test, weights, k1, k2, reduction, step)
    static = gradients_of(test, trained, k1, k2, reduction, lambda gradients: None)
    values = scores_of(model, Data(test=test, train=train))
    loss, num_targets = model.evaluation._sums.tolist()
    assert_close(loss / num_targets, expected, **EXACT)
    assert num_targets == int(test[2].sum())
    assert abs(expected - static) > 1e-4
    assert values["test/MeanSquaredError"] == pytest.approx(expected, rel=1e-5)
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())


def state_of(model, trainer):
    (optimizer,) = trainer.optimizers
    return [
        *model.state_dict().values(),
        *(value for values in optimizer.state.values() for value in values.values()),
        model.carry.state,
        torch.get_rng_state(),
    ]


def test_the_model_is_bit_for_bit_what_it_was():
    model = Tanh(k1=4, k2=6, evaluation=DynamicEvaluation(rule="sgd"), optimizer=torch.optim.Adam)
    trainer = fit(model, batches_of(sequence(3, masked=False), 4), max_epochs=2)
    before = [value.clone() for value in state_of(model, trainer)]
    static = trainer_of().validate(Tanh(k1=4), Data(validation=sequence(1)), verbose=False)
    values = trainer_of().validate(model, Data(validation=sequence(1)), verbose=False)
    assert values != static
    for value, saved in zip(state_of(model, trainer), before, strict=True):
        assert torch.equal(value, saved)
    again = trainer_of().validate(model, Data(validation=sequence(1)), verbose=False)
    assert again == values


class SeenWeights(Callback):
    def __init__(self):
        self.seen = []

    def _see(self, trainer, module, *args, **options):
        self.seen.append(module.output.detach().clone())

    on_validation_start = on_validation_batch_start = on_validation_batch_end = _see
    on_validation_epoch_end = on_validation_end = on_exception = _see


class Failing(Tanh):
    """Fails when it has scored some windows."""

    def evaluation_window(self, window, state):
        self.windows_left -= 1
        if not self.windows_left:
            assert not torch.equal(self.output, self.trained)
            raise RuntimeError("no more windows")
        return super().evaluation_window(window, state)


@pytest.mark.parametrize("fails", [False, True])
def test_callbacks_see_the_trained_weights(fails):
    model = Failing(k1=4, evaluation=DynamicEvaluation(rule="sgd"))
    model.trained, model.windows_left = model.output.detach().clone(), 5 if fails else -1
    seen = SeenWeights()
    trainer = trainer_of(callbacks=[seen])
    if fails:
        with pytest.raises(RuntimeError, match="no more windows"):
            trainer.validate(model, Data(validation=sequence(1)), verbose=False)
    else:
        trainer.validate(model, Data(validation=sequence(1)), verbose=False)
    assert len(seen.seen) == (5 if fails else 7)
    assert all(torch.equal(each, model.trained) for each in [*seen.seen, model.output])


def test_validations_within_a_fit_are_static_and_train_as_if_there_were_none():
    losses, weights = [], []
    for evaluation in (None, DynamicEvaluation(rule="sgd", lr=1.0)):
        model = Tanh(k1=4, evaluation=evaluation)
        trainer = fit(model, batches_of(sequence(3, masked=False), 4), batches_of(sequence(1)), max_epochs=3)
        losses.append(float(trainer.callback_metrics["val/loss"]))
        weights.append(model.output.detach().clone())
        trainer_of().test(model, Data(test=sequence(1)), verbose=False)
        fit(model, batches_of(sequence(4, masked=False), 4), max_epochs=1)
        weights.append(model.output.detach().clone())
    assert losses[0] == losses[1]
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


def test_without_carried_state_every_window_starts_from_the_initial_state():
    evaluation = DynamicEvaluation(rule="sgd", lr=0.0)
    dynamic = scores_of(Tanh(k1=4, carry_state=False, evaluation=evaluation), Data(test=sequence(1)))
    assert dynamic == pytest.approx(scores_of(Tanh(k1=4, carry_state=False), Data(test=sequence(1))))
    evaluation = DynamicEvaluation(rule="sgd", k1=3)
    with pytest.raises(InputError, match=r"evaluation\.k1=3 with model\.carry_state=False.*k1=4.*leave evaluation"):
        scores_of(Tanh(k1=4, carry_state=False, evaluation=evaluation), Data(test=sequence(1)))


def test_modules_may_share_an_evaluation():
    shared, data = DynamicEvaluation(rule="sgd", lr=0.0, decay=0.0), Data(test=sequence(1))
    carrying, resetting = (Tanh(k1=4, carry_state=carries, evaluation=shared) for carries in (True, False))
    for model in (carrying, resetting, carrying):
        expected = scores_of(Tanh(k1=4, carry_state=model.carry_state), data)
        assert scores_of(model, data) == pytest.approx(expected)


class ListedError(MeanSquaredError):
    def update(self, outputs, targets, rows):
        self.rows.append(rows)


def test_metrics_get_the_rows_of_every_part_that_is_scored():
    items = [(torch.randn(n).double(), torch.randn(n).double()) for n in (5, 8, 3, 11)]
    rows = []
    for evaluation in (None, DynamicEvaluation(rule="sgd", k1=4, k2=7)):
        model = Tanh(k1=4, evaluation=evaluation)
        model.evaluation_metrics = ListedError()
        model.evaluation_metrics.rows = []
        trainer_of().test(model, SequenceLanes(items, 2, 4, 2), verbose=False)
        rows.append(sorted(torch.cat(model.evaluation_metrics.rows).tolist()))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 27


# The statistics, and the search


class Counted(Tanh):
    """Counts the training windows that it runs in evaluations."""

    num_windows = 0

    def window_loss(self, window, state):
        self.num_windows += 1
        return super().window_loss(window, state)


def trained(folder, epochs):
    """Returns the path of a checkpoint."""
    trainer = fit(Tanh(k1=4), batches_of(sequence(3, masked=False), 4), max_epochs=epochs)
    trainer.save_checkpoint(folder / "some.ckpt")
    return folder / "some.ckpt"


def test_statistics_are_kept_beside_the_checkpoint_of_these_weights(tmp_path):
    path = trained(tmp_path, 1)
    both, with_other = (Data(test=sequence(1), train=sequence(seed)) for seed in (2, 6))

    def score(data, **options):
        model = Counted(k1=4, evaluation=DynamicEvaluation(**({"statistics_windows": 3} | options)))
        (values,) = trainer_of().test(model, data, ckpt_path=path, verbose=False)
        return values, model.num_windows

    values, num_windows = score(both)
    assert num_windows == 3
    assert score(both) == (values, 0)
    assert score(both, keep_statistics=False) == (values, 3)
    other, num_windows = score(both, statistics_windows=5)
    assert num_windows == 5
    assert other != values
    of_other, num_windows = score(with_other, statistics_windows=5)
    assert num_windows == 5
    assert of_other != other
    assert score(both, statistics_windows=5) == (other, 5)
    (kept,) = tmp_path.rglob("*.gradients")
    kept.write_bytes(kept.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="computed again.*not a checkpoint that can be read"):
        assert score(both, statistics_windows=5) == (other, 5)


def test_statistics_of_other_weights_are_not_used(tmp_path):
    paths = [trained(tmp_path / str(epochs), epochs) for epochs in (1, 2)]
    data = Data(test=sequence(1), train=sequence(2))
    for path in paths:
        trainer_of().test(Tanh(k1=4, evaluation=DynamicEvaluation()), data, ckpt_path=path, verbose=False)
    kept = [next((tmp_path / str(epochs)).rglob("*.gradients")) for epochs in (1, 2)]
    kept[1].write_bytes(kept[0].read_bytes())
    model = Counted(k1=4, evaluation=DynamicEvaluation())
    trainer_of().test(model, data, ckpt_path=paths[1], verbose=False)
    assert model.num_windows == 6 - 1 + 1  # 22 time steps in windows of 4, cut at 12


def test_the_search_takes_the_pair_with_the_least_loss_on_the_validation_split(caplog):
    data = Data(test=sequence(1), validation=sequence(4))
    model = Tanh(k1=4, evaluation=DynamicEvaluation(rule="sgd", lr=0.03, search=True, search_targets=40))
    values = scores_of(model, data)
    printed = "\n".join(record.getMessage() for record in caplog.records)
    tried = dict(re.findall(r"^(evaluation\.lr=.*?): ([\d.]+) per validation target$", printed, re.MULTILINE))
    assert len(tried) == 9
    lr, decay = model.evaluation.chosen
    chosen = f"evaluation.lr={lr:.3g}, evaluation.decay={decay:.3g}"
    assert f"chosen: {chosen}" in printed
    assert float(tried[chosen]) == min(map(float, tried.values())) < max(map(float, tried.values()))
    assert values == scores_of(Tanh(k1=4, evaluation=DynamicEvaluation(lr, decay, "sgd")), data)


def test_a_pair_whose_loss_is_not_finite_is_not_chosen(caplog):
    data = Data(test=sequence(1), validation=sequence(4))
    model = Tanh(k1=4, evaluation=DynamicEvaluation(rule="sgd", lr=1e308, search=True))
    with pytest.raises(InputError, match=r"evaluation\.lr=1e\+308: the search found no pair with a finite loss"):
        scores_of(model, data)
    assert "evaluation.lr=1e+308, evaluation.decay=0.002: the loss diverges" in caplog.text
    with pytest.warns(UserWarning, match=r"the dynamic loss is nan: evaluation\.lr=1e\+308 is too large"):
        scores_of(Tanh(k1=4, evaluation=DynamicEvaluation(1e308, rule="sgd")), data)


def test_an_evaluation_may_be_set_later():
    values = []
    for carry_state, later in ((True, False), (False, False), (False, True)):
        evaluation = DynamicEvaluation(rule="sgd", lr=0.02)
        model = Tanh(k1=4, carry_state=carry_state, evaluation=None if later else evaluation)
        if later:
            model.evaluation = evaluation
        values.append(scores_of(model, Data(test=sequence(1))))
    assert values[0] != values[1] == values[2]
    model.evaluation = None
    assert model.evaluation is model.static_evaluation
    with pytest.raises(InputError, match=r"evaluation=<class .*>: must be an Evaluation object"):
        model.evaluation = DynamicEvaluation


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0: must be 0 or more"),
        ({"lr": math.nan}, r"lr=nan"),
        ({"lr": math.inf}, r"lr=inf: must be 0 or more, and finite"),
        ({"decay": 1.5}, r"decay=1\.5: must be from 0 to 1"),
        ({"rule": "adam"}, r"rule='adam': must be rms or sgd"),
        ({"k1": 0}, "k1=0"),
        ({"k1": 4, "k2": 3}, "k2=3 with k1=4"),
        ({"k2": 3}, r"k2=3 without k1"),
        ({"search_targets": 0}, r"search_targets=0"),
        ({"statistics_windows": 0}, r"statistics_windows=0"),
        ({"epsilon": 0.0}, r"epsilon=0\.0: must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DynamicEvaluation(**options)


def refused_with_several_processes():
    model = Tanh(k1=4, evaluation=DynamicEvaluation(rule="sgd"))
    with pytest.raises(InputError, match="DynamicEvaluation with 2 processes: every step depends on the one before"):
        scores_of(model, Data(test=sequence(1)), strategy="ddp", devices=2)
    return True


def test_several_processes_are_refused(tmp_path):
    assert together(tmp_path, 2, refused_with_several_processes) == [True, True]


def test_frozen_weights_are_refused():
    model = Tanh(k1=4, evaluation=DynamicEvaluation(rule="sgd")).requires_grad_(False)
    with pytest.raises(InputError, match="all weights are frozen"):
        scores_of(model, Data(test=sequence(1)))


@pytest.mark.parametrize(("rule", "search", "split"), [("rms", False, "train"), ("sgd", True, "validation")])
def test_data_without_the_split_are_refused(rule, search, split):
    evaluation = DynamicEvaluation(rule=rule, search=search)
    with pytest.raises(InputError, match=rf"needs the {split} split.*evaluation_dataloader\(split\)"):
        trainer_of().test(Tanh(k1=4, evaluation=evaluation), batches_of(sequence(1)), verbose=False)


def in_half_precision(**options):
    model = Tanh(k1=4, evaluation=DynamicEvaluation(rule="sgd")).float()
    data = batches_of([part.float() if part.is_floating_point() else part for part in sequence(1)])
    return trainer_of(**options).test(model, data, verbose=False)


def test_steps_that_would_be_rounded_away_are_refused():
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    for name, options in (("bf16-true", {}), ("16-mixed", {"plugins": [half]})):
        with pytest.raises(InputError, match=f"trainer.precision={name}: its steps would be rounded away"):
            in_half_precision(precision=None if options else name, **options)


def test_it_runs_under_autocast():
    (values,) = in_half_precision(precision="bf16-mixed")
    (exact,) = in_half_precision(precision="32-true")
    assert values != exact
    assert values == pytest.approx(exact, rel=0.02)


def test_something_else_than_an_evaluation_is_refused():
    with pytest.raises(InputError, match="evaluation='dynamic': must be an Evaluation object, such as Dynamic"):
        Tanh(k1=4, evaluation="dynamic")
