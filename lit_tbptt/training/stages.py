"""The stages beside training, as Lightning calls them: validation, test and prediction. For any task."""

import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric, MetricCollection

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Batch, Task, Window, WindowLoss
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import loss_of_outputs, outputs_and_state
from lit_tbptt.training.ddp import check_lanes
from lit_tbptt.training.evaluation import Evaluation
from lit_tbptt.training.hooks import end_averages
from lit_tbptt.training.overrides import loop_hooks
from lit_tbptt.training.resume import ResumableModule


@loop_hooks
class EvaluatingModule(ResumableModule):
    """A LightningModule that validates, tests and predicts with a state of its own.

    `LitTBPTT` describes the attributes.
    """

    loss_name: str
    static_evaluation: Evaluation
    evaluation_metrics: Metric | MetricCollection | None
    window_loss: Callable[[Window, State], WindowLoss]
    predict_window: Callable[[Window, State], tuple[Any, State]]
    outputs_loss: Callable[[Any, Window], tuple[Any, ...]]

    def describe_loss(self, mean_loss: float, source: Any) -> dict[str, float]:
        """Names the values that are logged for a mean loss per target over `source`, a loader."""
        return {self.loss_name: mean_loss}

    def evaluation_window(self, window: Window, state: State) -> WindowLoss:
        """Returns what a window of an evaluation costs, and updates `evaluation_metrics`.

        Raises:
            InputError: There are metrics, and the task defines no `predict_window`.
        """
        if self.evaluation_metrics is None:
            return self.window_loss(window, state)
        self._need_outputs("evaluation_metrics are updated with outputs")
        outputs, state = outputs_and_state(self, window, state)
        loss, num_targets, *_ = loss_of_outputs(self, outputs, window)  # first: without targets, its error says why
        self._evaluating.update_metrics(self.evaluation_metrics, outputs, window)
        return WindowLoss(loss, num_targets, state)

    # Validation and test

    @property
    def evaluation(self) -> Evaluation:
        """How validate and test score windows; None sets it to `static_evaluation`.

        Raises:
            InputError: It is set to something else.
        """
        return self._evaluation

    @evaluation.setter
    def evaluation(self, evaluation: Evaluation | None) -> None:
        if not isinstance(evaluation, Evaluation | None):
            raise InputError(f"evaluation={evaluation!r}: must be an Evaluation object, such as DynamicEvaluation()")
        self._evaluation = evaluation or self.static_evaluation

    @property
    def _evaluating(self) -> Evaluation:
        return self.evaluation if self.trainer.state.fn in ("validate", "test") else self.static_evaluation

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            end_averages(self.trainer, self, trained=True)  # those of a fit that failed
        # A checkpoint's weights are the average, and an evaluation needs nothing else of it.
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback, but loading a checkpoint outside")

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        if stage == "fit":
            end_averages(self.trainer, self, trained=self._resume is None)

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation(self.trainer.val_dataloaders)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        check_batch(batch)
        self._evaluating.add(self, batch)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation("val", self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation(self.trainer.test_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        check_batch(batch)
        self._evaluating.add(self, batch)

    def on_test_epoch_end(self) -> None:
        self._end_evaluation("test", self.trainer.test_dataloaders)

    def on_validation_start(self) -> None:
        # Where max_steps breaks a batch off, Lightning validates at a place that the run continued would pass by.
        self._metrics_before = None if self.position.at_batch_end else dict(self.trainer.callback_metrics)
        self.log_book.pause_clock()

    def on_validation_end(self) -> None:
        self.log_book.resume_clock()

    def _begin_evaluation(self, loaders: Any) -> None:
        check_lanes(loaders, self.trainer)
        self._evaluating.reset_every = self.static_evaluation.reset_every  # the object may also be another module's
        self._evaluating.begin(self)

    def _end_evaluation(self, stage: str, loaders: Any) -> None:
        mean_loss, metrics = self._evaluating.end(self)
        losses = self.describe_loss(mean_loss, loaders)
        if both := losses.keys() & metrics.keys():
            raise InputError(
                f"evaluation_metrics: {', '.join(sorted(both))} is what the loss is logged as; give the metric another "
                "name, as in MetricCollection({name: metric})"
            )
        values = {f"{stage}/{name}": value for name, value in (losses | metrics).items()}
        fitting = self.trainer.state.fn == "fit"
        if not self._evaluating.num_targets and not self.trainer.sanity_checking:
            rank_zero_warn(
                f"{stage}/{self.loss_name} is nan, because no target was scored: look at the mask and burn-in of the "
                f"split, and at limit_{stage}_batches"
            )
        # It is of all ranks already.
        warnings.filterwarnings("ignore", ".*sync_dist=True.* when logging on epoch level in distributed setting")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You called `self.log.*no logger configured")
            # For callbacks that monitor a metric, and for `validate`, which returns only what loggers may get. In a fit
            # they get it over optimizer steps, below.
            self.log_dict(values, logger=not fitting)
        if not fitting or self.trainer.sanity_checking:
            return  # an evaluation of some checkpoint is no point of the training curve
        self.log_book.write(self.trainer, values, passing=not self.position.at_batch_end)
        self.position.batch_finished = self.position.at_batch_end

    # Prediction

    def prediction_window(self, window: Window, state: State) -> tuple[Any, State]:
        """Returns what `trainer.predict` gives for a window, and the state after it; left alone, the task's outputs.

        A subclass may return any pytree of tensors `[lane, time, ...]`. As `window_loss`, it may be called on any part
        of a window.

        Raises:
            InputError: The task defines no `predict_window`.
        """
        self._need_outputs("predictions are not made from window_loss")
        return outputs_and_state(self, window, state)

    def _need_outputs(self, why: str) -> None:
        if getattr(self.predict_window, "__func__", None) is Task.predict_window:
            raise InputError(
                f"{type(self).__name__} must define predict_window(window, state), which returns the outputs and the "
                f"state: {why}"
            )

    def on_predict_start(self) -> None:
        check_lanes(self.trainer.predict_dataloaders, self.trainer)
        # A BasePredictionWriter asks for them; windows are not drawn by an index.
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices fetched from your dataloader")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Returns what `prediction_window` gives for the windows of a batch, joined along time.

        The state is carried on from batch to batch, and starts again with every loader.

        Returns:
            A pytree of tensors, `[lane, time, ...]`, also of what is masked; see `Evaluation.predict`. None: this
            process has no lanes.
        """
        check_batch(batch)
        if batch_idx == 0:
            self._evaluating.forget_state(self)
        return self._evaluating.predict(self, batch)

    def on_predict_end(self) -> None:
        self._evaluating.forget_state(self)


def check_batch(batch: Any) -> None:
    """Makes sure that the data are batches of windows.

    Raises:
        InputError: They are something else, or have a wrong number of `step_factors`.
    """
    if not isinstance(batch, Batch):
        raise InputError(
            f"the data give a {type(batch).__name__} where a Batch of windows is expected: give one iterable of Batch, "
            "such as StridedLanes, for training and for each evaluation, not a list or a dictionary of them"
        )
    if batch.step_factors is not None and len(batch.step_factors) != len(batch.windows):
        raise InputError(
            f"step_factors: a batch of {len(batch.windows)} windows has {len(batch.step_factors)} of them: give one "
            "for each window, or None"
        )
