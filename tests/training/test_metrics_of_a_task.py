"""Metrics of a user's own: updated with what is scored, and with who it was."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from loops import fit
from tasks import Batches, Regression
from torch.testing import assert_close
from torchmetrics import CatMetric, MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric

from lit_tbptt import GRU, InputError, LitLanguageModel, LitTBPTT, RunCheckpoint, SequenceLanes, Window
from lit_tbptt.data.text.tokenizers import ByteTokenizer
from lit_tbptt.training.evaluation import Evaluation

ITEMS = [(torch.randn(n), torch.randn(n)) for n in (5, 8, 3, 11)]


class ErrorBySequence(Metric):
    """The squared error of each of four sequences, and of its last time steps alone."""

    def __init__(self):
        super().__init__()
        self.add_state("errors", torch.zeros(2, 4), dist_reduce_fx="sum")

    def update(self, outputs, targets, rows):
        errors = (outputs - targets).square()
        self.errors[0].index_add_(0, rows[:, 0], errors)
        self.errors[1].index_add_(0, rows[:, 0], errors * (rows[:, 1] > 6))

    def compute(self):
        return {
            f"{name}_{i}": value
            for name, row in zip(("all", "late"), self.errors, strict=True)
            for i, value in enumerate(row)
        }


class Predicting(Regression):
    window_loss = LitTBPTT.window_loss

    def __init__(self, metrics, **options):
        super().__init__(**options)
        self.evaluation_metrics = metrics

    def predict_window(self, window, state):
        outputs, state = self.core(window.inputs.unsqueeze(-1), state.unsqueeze(0).contiguous())
        return self.head(outputs).squeeze(-1), state.squeeze(0)

    def outputs_loss(self, outputs, window):
        errors = (outputs - window.targets).square()[window.mask_or_ones()]
        return errors.sum(), errors.numel()


def values_of(model, lanes):
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (values,) = trainer.test(model, lanes, verbose=False)
    return values


@pytest.mark.parametrize("carry_state", [True, False])
def test_metrics_get_outputs_targets_and_rows_of_what_is_scored(carry_state):
    metrics = MetricCollection(
        {"error": MeanSquaredError(), "absolute": MeanAbsoluteError(), "each": ErrorBySequence()}
    )
    model = Predicting(metrics, k1=2, carry_state=carry_state)
    values = values_of(model, SequenceLanes(ITEMS, 2, 4, 2))
    errors, absolute = [], []
    for inputs, targets in ITEMS:
        outputs, state = [], model.initial_state(1)
        for part in inputs.split(2):
            state = state if carry_state else model.initial_state(1)
            output, state = model.core(part[None, :, None], state[None])
            state = state[0]
            outputs.append(model.head(output)[0, :, 0])
        difference = (torch.cat(outputs) - targets).detach()
        errors.append(difference.square())
        absolute.append(difference.abs())
    expected = {"test/loss": torch.cat(errors).mean(), "test/error": torch.cat(errors).mean()}
    expected["test/absolute"] = torch.cat(absolute).mean()
    expected |= {f"test/each_all_{i}": each.sum() for i, each in enumerate(errors)}
    expected |= {f"test/each_late_{i}": each[7:].sum() for i, each in enumerate(errors)}
    assert_close(values, {name: value.item() for name, value in expected.items()}, rtol=1e-5, atol=1e-6)


def test_a_single_metric_is_logged_under_its_name():
    values = values_of(Predicting(MeanSquaredError()), SequenceLanes(ITEMS, 2, 4))
    assert values["test/MeanSquaredError"] == pytest.approx(values["test/loss"])


def test_windows_without_targets_reach_no_metric():
    class NonEmptySquaredError(MeanSquaredError):
        def update(self, outputs, targets):
            assert len(targets)
            super().update(outputs, targets)

    values = values_of(Predicting(NonEmptySquaredError()), SequenceLanes(ITEMS, 2, 2, burn_in=2))
    assert values["test/NonEmptySquaredError"] == pytest.approx(values["test/loss"])


class ByQuarter(Metric):
    """How many targets are in each quarter of the numbers, as a vector, a matrix, a dictionary, or a list."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.add_state("counts", torch.zeros(4), dist_reduce_fx="sum")

    def update(self, outputs, targets):
        self.counts += torch.histc(targets, 4, -2, 2)

    def compute(self):
        forms = {"matrix": self.counts.view(2, 2), "dict": {"low": self.counts[:3], "high": self.counts[3]}}
        return forms.get(self.form, self.counts.tolist() if self.form == "list" else self.counts)


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (ByQuarter("vector"), [f"ByQuarter_{i}" for i in range(4)]),
        (ByQuarter("matrix"), [f"ByQuarter_{i}_{j}" for i in range(2) for j in range(2)]),
        (ByQuarter("dict"), ["low_0", "low_1", "low_2", "high"]),
        (MetricCollection({"all": ByQuarter("vector")}, prefix="of_"), [f"of_all_{i}" for i in range(4)]),
        (
            MetricCollection({"by": ClasswiseWrapper(ByQuarter("vector"), list("abcd"), "in_")}),
            ["by_in_a", "by_in_b", "by_in_c", "by_in_d"],
        ),
    ],
)
def test_a_metric_of_several_numbers_is_logged_as_each_of_them(metrics, names):
    values = values_of(Predicting(metrics), SequenceLanes(ITEMS, 2, 4))
    counts = torch.histc(torch.cat([targets for _, targets in ITEMS]), 4, -2, 2)
    assert {name: values[f"test/{name}"] for name in names} == dict(zip(names, counts.tolist(), strict=True))


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"error": MeanSquaredError()}, r"evaluation_metrics is a dict: give one torchmetrics metric, or .*Collection"),
        ([MeanSquaredError()], "evaluation_metrics is a list: give one"),
        (ByQuarter("list"), "evaluation_metrics: ByQuarter computes a list, which cannot be logged"),
        (MetricCollection({"loss": MeanSquaredError()}), "evaluation_metrics: loss is what the loss is logged as"),
    ],
)
def test_metrics_that_cannot_be_logged_are_refused(metrics, message):
    with pytest.raises(InputError, match=message):
        values_of(Predicting(metrics), SequenceLanes(ITEMS, 2, 4))


class Size(Metric):
    """The mean size of the outputs, which need no targets."""

    def __init__(self):
        super().__init__()
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, outputs, targets):
        assert targets is None
        self.sums += torch.stack([outputs.abs().sum(), torch.tensor(len(outputs))])

    def compute(self):
        return self.sums[0] / self.sums[1]


def test_a_task_without_targets_has_metrics_too():
    class Small(Predicting):
        def outputs_loss(self, outputs, window):
            return outputs.abs()[window.mask_or_ones()].sum(), window.mask_or_ones().sum()

    values = values_of(Small(Size()), SequenceLanes([inputs for inputs, _ in ITEMS], 2, 4))
    assert values["test/Size"] == pytest.approx(values["test/loss"])
    with pytest.raises(TypeError, match="NoneType"):  # in the task's own loss
        values_of(Predicting(Size()), SequenceLanes([inputs for inputs, _ in ITEMS], 2, 4))


class FirstSquaredError(MeanSquaredError):
    """Counts the errors of the first two sequences only."""

    def update(self, outputs, targets, rows):
        super().update(torch.where(rows[:, 0] < 2, outputs, targets), targets)


def test_wrapped_metrics_get_rows_where_the_inner_metric_takes_them():
    metrics = {"whole": MinMaxMetric(MeanSquaredError()), "first": MinMaxMetric(FirstSquaredError())}
    values = values_of(Predicting(MetricCollection(metrics | {"each": ErrorBySequence()})), SequenceLanes(ITEMS, 2, 4))
    assert values["test/whole_raw"] == pytest.approx(values["test/loss"])
    expected = (values["test/each_all_0"] + values["test/each_all_1"]) / sum(len(x) for x, _ in ITEMS)
    assert values["test/first_raw"] == pytest.approx(expected)


def test_checkpoints_of_a_module_with_metrics_load(tmp_path):
    def model():
        return Predicting(MetricCollection({"error": MeanSquaredError(), "each": ErrorBySequence()}), k1=4)

    lanes, options = SequenceLanes(ITEMS, 2, 4), {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trained, checkpoint = model(), RunCheckpoint()
    fitted = fit(trained, lanes, lanes, callbacks=[checkpoint], max_epochs=1, precision="32-true", **options)
    (expected,) = fitted.test(trained, lanes, verbose=False)
    assert not [name for name in trained.state_dict() if "metric" in name]
    (values,) = fitted.test(model(), lanes, ckpt_path=checkpoint.last_model_path, verbose=False)
    assert values == expected
    loaded = Predicting.load_from_checkpoint(checkpoint.last_model_path, metrics=MeanSquaredError(), k1=4)
    assert values_of(loaded, lanes)["test/MeanSquaredError"] == pytest.approx(expected["test/error"])


class StrictSquaredError(MeanSquaredError):
    """Cannot be computed without a target."""

    def compute(self):
        assert self.total > 0
        return super().compute()


def masked(heard):
    """Lanes in which only some of the sequences have targets."""
    items = [(*item, torch.full((len(item[0]),), number in heard)) for number, item in enumerate(ITEMS)]
    return SequenceLanes(items, 2, 4, inputs=0, targets=1, mask=2)


def test_a_split_without_any_target_is_never_best(tmp_path):
    model, checkpoint = Predicting(StrictSquaredError(), k1=4), RunCheckpoint()
    callbacks = [checkpoint, EarlyStopping("val/loss", patience=9)]
    options = {"callbacks": callbacks, "enable_checkpointing": True, "default_root_dir": tmp_path}
    with pytest.warns(UserWarning, match="val/loss is nan, because no target was scored: look at the mask"):
        trainer = fit(model, masked({0, 3}), masked(()), max_epochs=4, num_sanity_val_steps=2, **options)
    assert trainer.callback_metrics["val/loss"].isnan()
    assert trainer.callback_metrics["val/StrictSquaredError"].isnan()
    assert trainer.current_epoch == 1  # EarlyStopping ends a run at a number that is not finite
    assert (checkpoint.scores, checkpoint.best_model_path) == ([], "")
    assert checkpoint.last_model_path


def test_a_sanity_check_may_see_no_target():
    model = Predicting(StrictSquaredError(), k1=4)
    trainer = fit(model, masked({1}), masked({3}), num_sanity_val_steps=1, max_epochs=1)
    assert trainer.callback_metrics["val/loss"] > 0


def test_text_without_any_target_has_no_perplexity():
    model = LitLanguageModel(GRU(5), k1=7)
    model._build(ByteTokenizer())
    ids = torch.randint(256, (2, 7))
    windows = [Window(ids, ids, None, torch.zeros(2, 7, dtype=torch.bool))] * 3
    with pytest.warns(UserWarning, match="test/nats_per_token is nan"):
        values = values_of(model, Batches(windows))
    assert values.pop("test/num_targets") == 0
    assert set(values) == {"test/nats_per_token", "test/perplexity", "test/accuracy"}
    assert all(map(math.isnan, values.values()))


def test_metrics_need_outputs():
    model = Regression()
    model.evaluation_metrics = MeanSquaredError()
    with pytest.raises(InputError, match=r"Regression must define predict_window.*evaluation_metrics are updated with"):
        values_of(model, SequenceLanes(ITEMS, 2, 4))


def test_lists_of_all_values_are_refused_on_several_ranks():
    class Module:
        evaluation_metrics = MetricCollection([MeanSquaredError(), CatMetric()])
        trainer = type("OfTwo", (), {"world_size": 2})
        device = torch.device("cpu")

    with pytest.raises(InputError, match="CatMetric keeps a list of all values"):
        Evaluation().begin(Module())
