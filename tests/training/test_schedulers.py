"""Every schedule of torch: steps as in a plain loop, a resume, Lightning's own command line."""

import json

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from loops import Rates, SavedAt, fit
from oscillator import Oscillator, Waves
from tasks import Regression
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from lit_tbptt import InputError

STEPS, EPOCHS = 6, 5  # steps of an epoch
SCHEDULERS = {
    ChainedScheduler: lambda adam: ChainedScheduler([LinearLR(adam, 0.1, total_iters=4), ExponentialLR(adam, 0.9)]),
    ConstantLR: lambda adam: ConstantLR(adam, 0.3, 3),
    CosineAnnealingLR: lambda adam: CosineAnnealingLR(adam, 9, 0.01),
    CosineAnnealingWarmRestarts: lambda adam: CosineAnnealingWarmRestarts(adam, 2, 2),
    CyclicLR: lambda adam: CyclicLR(adam, 0.01, 0.1, 2, mode="triangular2"),
    ExponentialLR: lambda adam: ExponentialLR(adam, 0.9),
    LambdaLR: lambda adam: LambdaLR(adam, lambda count: 0.9**count),
    LinearLR: lambda adam: LinearLR(adam, 0.2, total_iters=4),
    MultiplicativeLR: lambda adam: MultiplicativeLR(adam, lambda count: 0.9),
    MultiStepLR: lambda adam: MultiStepLR(adam, [2, 3, 11], 0.5),
    OneCycleLR: lambda adam: OneCycleLR(adam, 0.1, total_steps=EPOCHS * STEPS + 1),
    PolynomialLR: lambda adam: PolynomialLR(adam, 20, 2.0),
    # A loss that is ten lower counts as better: none is.
    ReduceLROnPlateau: lambda adam: ReduceLROnPlateau(adam, patience=1, factor=0.5, threshold=10, threshold_mode="abs"),
    SequentialLR: lambda adam: SequentialLR(adam, [LinearLR(adam, 0.1, total_iters=3), ExponentialLR(adam, 0.9)], [3]),
    StepLR: lambda adam: StepLR(adam, 3, 0.5),
    SWALR: lambda adam: SWALR(adam, 0.001, 5),
}


def test_the_table_has_all_of_torch():
    assert {kind.__name__ for kind in SCHEDULERS} == {*torch_schedulers.__all__, "SWALR"} - {"LRScheduler"}


def train(scheduler, interval, saved, resume=None):
    module, rates = Regression(k1=5), Rates()

    def configure():
        adam = torch.optim.Adam(module.parameters(), 0.1)
        schedule = {"scheduler": SCHEDULERS[scheduler](adam), "interval": interval, "monitor": "train/loss"}
        return {"optimizer": adam, "lr_scheduler": schedule}

    module.configure_optimizers = configure
    fit(module, Waves(1, 3, 5, STEPS // 2), max_epochs=EPOCHS, callbacks=[rates, saved], resume=resume)
    return rates.seen


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'. 'epoch'")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_steps_as_in_a_plain_loop_and_is_continued(scheduler, interval, tmp_path):
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], 0.1)
    written_out, expected = SCHEDULERS[scheduler](adam), []
    for step in range(1, EPOCHS * STEPS + 1):
        if interval == "epoch":
            expected.append(adam.param_groups[0]["lr"])
        adam.step()
        if interval == "step" or step % STEPS == 0:
            written_out.step(*([1.0] if scheduler is ReduceLROnPlateau else []))
        if interval == "step":
            expected.append(adam.param_groups[0]["lr"])
    if scheduler is ReduceLROnPlateau and interval == "step":
        expected = [0.1, *expected[:-1]]  # it looks at the last loss that was logged, that of the step before
    saved = SavedAt(tmp_path / "saved.ckpt", 3 * STEPS - 1)
    assert train(scheduler, interval, saved) == expected
    assert len(set(expected)) > 1
    assert train(scheduler, interval, saved, resume=saved.path) == expected[3 * STEPS - 1 :]


# An option that changes, and what follows, with 0.1 at the start and the run continued after 17 of 30 steps.
CHANGES = {
    "a factor": ("StepLR", {"step_size": 6}, {"gamma": 0.5}, 0.1 * 0.1**2 * 0.5**3),
    "a length": ("CosineAnnealingLR", {"T_max": 30}, {"T_max": 60}, None),
    "a list": ("MultiStepLR", {"milestones": [3, 20]}, {"milestones": [3, 22]}, "lr_scheduler.milestones=.3, 22.: a"),
    "a rate": ("OneCycleLR", {"max_lr": 1.0, "total_steps": 30}, {"max_lr": 0.1}, "lr_scheduler.max_lr=0.1: a resumed"),
    "phases": ("OneCycleLR", {"max_lr": 1.0, "total_steps": 30}, {"total_steps": 40}, "OneCycleLR reads it only when"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_option_is_changed_in_a_resumed_run_or_refused(case, tmp_path):
    name, options, change, expected = CHANGES[case]

    def run(resume=None, change=None):
        module, rates = Regression(k1=5), Rates()

        def configure():
            adam = torch.optim.Adam(module.parameters(), 0.1)
            made = getattr(torch_schedulers, name)(adam, **options | (change or {}))
            return {"optimizer": adam, "lr_scheduler": {"scheduler": made, "interval": "step"}}

        module.configure_optimizers, module.changed_schedule = configure, change or {}
        fit(module, Waves(1, 3, 5, STEPS // 2), max_epochs=EPOCHS, callbacks=[rates, saved], resume=resume)
        return rates.seen

    saved = SavedAt(tmp_path / "saved.ckpt", 3 * STEPS - 1)
    before = run()
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            run(saved.path, change)
    else:
        after = run(saved.path, change)
        assert after[-1] == pytest.approx(expected) if expected else after[-1] > before[-1] + 0.01


def test_a_new_rate_keeps_what_a_plateau_has_reduced(tmp_path):
    def run(lr, resume=None):
        module, rates = Regression(k1=5), Rates()

        def configure():
            adam = torch.optim.Adam(module.parameters(), lr)
            made = SCHEDULERS[ReduceLROnPlateau](adam)
            return {"optimizer": adam, "lr_scheduler": {"scheduler": made, "monitor": "train/loss"}}

        module.configure_optimizers, module.changed_optimizer = configure, {"lr": lr} if resume else {}
        fit(module, Waves(1, 3, 5, STEPS // 2), max_epochs=EPOCHS, callbacks=[rates, saved], resume=resume)
        return rates.seen

    saved = SavedAt(tmp_path / "saved.ckpt", 4 * STEPS - 1)
    whole = run(0.1)
    assert whole[4 * STEPS - 2] < 0.1
    assert run(0.2, saved.path) == pytest.approx([2 * rate for rate in whole[4 * STEPS - 1 :]])


@pytest.mark.filterwarnings("ignore:`Oscillator.configure_optimizers` will be overridden")
@pytest.mark.parametrize("section", ["", "model."])
def test_lightnings_own_command_line(section, monkeypatch):
    """Its --optimizer and --lr_scheduler are set on the instance, ours are the constructor's."""
    options = {
        f"{section}optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        f"{section}lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.StepLR",
            "init_args": {"step_size": 2, "gamma": 0.5},
        },
    }
    monkeypatch.setattr("sys.argv", ["fit.py", *(f"--{name}={json.dumps(value)}" for name, value in options.items())])
    cli = LightningCLI(
        Oscillator,
        run=False,
        seed_everything_default=1,
        save_config_callback=None,
        trainer_defaults={
            "max_epochs": 5,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )
    cli.trainer.fit(cli.model, Waves(1, 3, 5, 4))
    assert cli.trainer.global_step == 5 * 8
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**2
