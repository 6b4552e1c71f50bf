"""Lightning's callbacks that count optimizer steps, of which a batch holds several; and those that are refused."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from loops import batches, fit, sequence
from tasks import Regression

from lit_tbptt import InputError


@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_weights_are_averaged_after_every_step(windows_per_batch):
    averages, weights = EMAWeightAveraging(decay=0.7), []

    class Weights(Callback):
        def on_step_end(self, trainer, module):
            weights.append({name: value.clone() for name, value in module.state_dict().items()})

    module = Regression(k1=5)
    data = tuple(part.float() for part in sequence())
    callbacks = [averages, Weights()]
    fit(module, batches(5, windows_per_batch, data), max_epochs=1, callbacks=callbacks, precision="32-true")
    expected = weights[0]  # torch's AveragedModel begins with a copy
    for later in weights[1:]:
        expected = {name: 0.7 * value + 0.3 * later[name] for name, value in expected.items()}
    assert len(weights) == 13
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_the_learning_rate_is_monitored_by_steps(windows_per_batch, tmp_path):
    logger = CSVLogger(tmp_path)
    options = {"callbacks": [LearningRateMonitor()], "logger": logger, "log_every_n_steps": 5}
    fit(Regression(k1=5), batches(5, windows_per_batch), **options)
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    assert [int(row["step"]) for row in rows if row["lr-SGD"]] == [0, 4, 9, 13, 14, 19, 24]  # and each epoch


@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_model_checkpoint_saves_after_the_steps_it_is_told(windows_per_batch, tmp_path):
    callback = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    fit(Regression(k1=5), batches(5, windows_per_batch), callbacks=[callback], enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={step}.ckpt" for step in (10, 15, 20, 25, 5)]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (StochasticWeightAveraging(0.01), "StochasticWeightAveraging: it steps a schedule of its own .* use EMAW"),
        (LearningRateFinder(), "LearningRateFinder: it raises the learning rate once a batch"),
        (BatchSizeFinder(), "BatchSizeFinder: the number of lanes decides what is learned"),
    ],
)
def test_what_relies_on_automatic_optimization_is_refused(callback, message):
    class WithData(Regression):
        batch_size = 3

        def train_dataloader(self):
            return batches(5)

    with pytest.raises(InputError, match=message):
        fit(WithData(k1=5), None, callbacks=[callback])
