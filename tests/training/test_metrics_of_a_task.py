"""Metrics of a user's own: updated with what is scored, and with who it was."""

import pytest
import torch
from lightning.pytorch import Trainer
from tasks import Regression
from torch.testing import assert_close
from torchmetrics import CatMetric, MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection

from lit_tbptt import InputError, LitTBPTT, SequenceLanes
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
    expected |= {f"test/all_{i}": each.sum() for i, each in enumerate(errors)}
    expected |= {f"test/late_{i}": each[7:].sum() for i, each in enumerate(errors)}
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
