"""The schedule steps alike, however a module comes to its configure_optimizers."""

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from loops import Rates, Recording, batches, fit
from tasks import Regression

from lit_tbptt import InputError, WarmupCosineLR


def configured(module):
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Directly(Regression):
    def configure_optimizers(self):
        return configured(self)


class ThroughSuper(Directly):
    def configure_optimizers(self):
        found = super().configure_optimizers()
        assert found["lr_scheduler"]["interval"] == "step"
        return found


class Mixin:
    def configure_optimizers(self):
        return configured(self)


class FromAMixin(Mixin, Regression):
    pass


def on_the_instance(**options):
    module = Regression(**options)
    module.configure_optimizers = lambda: configured(module)
    return module


@pytest.mark.parametrize("make", [Directly, ThroughSuper, FromAMixin, on_the_instance])
def test_a_schedule_per_step_steps_by_every_route_and_in_every_fit(make):
    module = make(k1=5)
    for _ in range(2):
        rates = Rates()
        fit(module, batches(5, 4), max_epochs=1, callbacks=[rates])
        assert rates.seen == pytest.approx([0.1 * 0.9**step for step in range(1, 14)])


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=10, mode="max")


FORMS = {
    "an optimizer": lambda optimizer: optimizer,
    "two lists": lambda optimizer: ([optimizer], [exponential(optimizer)]),
    "lists, a dictionary": lambda optimizer: (
        [optimizer],
        [{"scheduler": exponential(optimizer), "interval": "step", "name": "mine"}],
    ),
    "a dictionary": lambda optimizer: {"optimizer": optimizer, "lr_scheduler": exponential(optimizer)},
    "a frequency": lambda optimizer: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": exponential(optimizer), "interval": "step", "frequency": 2, "name": "mine"},
    },
    "a list of dictionaries": lambda optimizer: [{"optimizer": optimizer, "lr_scheduler": exponential(optimizer)}],
    "a monitor": lambda optimizer: {
        "optimizer": optimizer,
        "lr_scheduler": plateau(optimizer),
        "monitor": "train/loss",
    },
    "reduce_on_plateau": lambda optimizer: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": plateau(optimizer), "reduce_on_plateau": True, "monitor": "train/loss"},
    },
}
# Steps and epochs by which each has multiplied the rate by 0.9, after two epochs of 13 steps.
TIMES = dict(zip(FORMS, (0, 2, 26, 2, 13, 2, 1, 1), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_lightning_takes(form):
    module, monitor, logged = Regression(k1=5), LearningRateMonitor(), Recording()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module.configure_optimizers = lambda: FORMS[form](optimizer)
    fit(module, batches(5), callbacks=[monitor] if TIMES[form] else [], logger=logged)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9 ** TIMES[form])
    if TIMES[form]:
        name = "mine" if form in ("lists, a dictionary", "a frequency") else "lr-SGD"
        assert {name} == {key for row in logged.rows for key in row if "SGD" in key or key == "mine"}


def test_a_fit_that_fails_in_between_leaves_nothing_behind():
    class FailsOnce(Directly):
        failed = False

        def setup(self, stage):
            super().setup(stage)
            if not self.failed:
                self.failed = True
                raise ValueError("not yet")

    module, rates = FailsOnce(k1=5), Rates()
    with pytest.raises(ValueError, match="not yet"):
        fit(module, batches(5, 4))
    fit(module, batches(5, 4), max_epochs=1, callbacks=[rates])
    assert rates.seen == pytest.approx([0.1 * 0.9**step for step in range(1, 14)])


class Plain(Regression):
    """Makes what the constructor was given."""

    def configure_optimizers(self):
        return super(Regression, self).configure_optimizers()


def test_the_constructors_optimizer_and_schedule_are_for_any_task():
    rates = Rates()
    module = Plain(k1=5, lr_interval="step")
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, 0.2)
    module.lr_scheduler = lambda optimizer: WarmupCosineLR(optimizer, warmup_steps=4)
    fit(module, batches(5, 4), max_epochs=-1, max_steps=8, callbacks=[rates])
    assert rates.seen[:4] == pytest.approx([0.2 * 2 / 5, 0.2 * 3 / 5, 0.2 * 4 / 5, 0.2])
    assert rates.seen[-1] == pytest.approx(0)


def test_a_schedule_that_counts_steps_is_not_stepped_by_epochs():
    module = Plain(k1=5, lr_interval="epoch")
    module.lr_scheduler = lambda optimizer: WarmupCosineLR(optimizer, warmup_steps=4)
    with pytest.raises(InputError, match="lr_interval='epoch' with WarmupCosineLR, which counts by step: leave"):
        fit(module, batches(5, 4))


def test_a_setup_that_leaves_out_the_one_above_is_told():
    class Forgetful(Regression):
        def setup(self, stage):
            pass

    with pytest.raises(InputError, match=r"Forgetful\.setup\(stage\) must call super\(\)\.setup\(stage\)"):
        fit(Forgetful(k1=5), batches(5))
