"""Hooks of the loop that are overridden: one that leaves the loop's part out is refused, however it does so."""

import functools
import pickle

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from loops import SavedAt, batches, fit
from oscillator import Waves
from resuming import per_epoch
from tasks import Regression

from lit_tbptt import InputError, LitLanguageModel, LitTBPTT

HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_before_optimizer_step",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_save_checkpoint",
    "training_step",
    "validation_step",
)


def nothing(self, *args, **options):
    pass


def delegating(hook):
    class Tracker:
        pass

    setattr(Tracker, hook, nothing)

    def tells_another(self, *args, **options):
        getattr(Tracker(), hook)(*args, **options)

    return tells_another


def to_lightning(hook):
    return lambda self, *args, **options: getattr(LightningModule, hook)(self, *args, **options)


ROUTES = {
    "a subclass": lambda hook: type("Mine", (Regression,), {hook: nothing}),
    "a mixin": lambda hook: type("Mine", (type("Mixin", (), {hook: nothing}), Regression), {}),
    "a class in between": lambda hook: type("Mine", (Regression, type("Between", (LitTBPTT,), {hook: nothing})), {}),
    "another object's": lambda hook: type("Mine", (Regression,), {hook: delegating(hook)}),
    "Lightning's own": lambda hook: type("Mine", (Regression,), {hook: to_lightning(hook)}),
}


@pytest.mark.filterwarnings("ignore:`training_step` must be implemented")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_leaves_out_a_part_of_the_loop_is_refused(hook, route, tmp_path):
    module = ROUTES[route](hook)(k1=5)
    with pytest.raises(InputError, match=rf"(Mine|Mixin|Between): {hook} must call super\(\)\.{hook}"):
        fit(module, batches(5), batches(5), max_epochs=1, callbacks=[SavedAt(tmp_path / "saved.ckpt", 3)])


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_set_on_the_module_is_seen_too(hook, tmp_path):
    module = Regression(k1=5)
    setattr(module, hook, functools.partial(nothing, module))
    with pytest.raises(InputError, match=f"the {hook} that was set on the module"):
        fit(module, batches(5), batches(5), max_epochs=1, callbacks=[SavedAt(tmp_path / "saved.ckpt", 3)])


def test_what_would_lose_a_checkpoint_is_refused_before_a_step_is_made():
    class Mine(Regression):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 1

    module = Mine(k1=5)
    with pytest.raises(InputError, match="on_save_checkpoint must call super"):
        fit(module, batches(5))
    assert module.trainer.global_step == 0


def test_a_load_that_leaves_out_a_part_of_the_loop_is_refused(tmp_path):
    class Mine(Regression):
        def on_load_checkpoint(self, checkpoint):
            pass

    saved = SavedAt(tmp_path / "saved.ckpt", 3)
    fit(Mine(k1=5), Waves(1, 3, 5, 4), callbacks=[saved])
    with pytest.raises(InputError, match="Mine: on_load_checkpoint must call super"):
        fit(Mine(k1=5), Waves(1, 3, 5, 4), resume=saved.path)


def test_a_network_that_is_not_made_is_told():
    class Mine(LitLanguageModel):
        def configure_model(self):
            pass

    with pytest.raises(InputError, match="Mine: configure_model must call super"):
        fit(Mine(), batches(5))


class ThroughAHelper(Regression):
    def on_before_optimizer_step(self, optimizer):
        self._clip(optimizer)

    def _clip(self, optimizer):
        super().on_before_optimizer_step(optimizer)


class ByName(Regression):
    def on_before_optimizer_step(self, optimizer):
        getattr(super(), "on_before_" + "optimizer_step")(optimizer)


def without_wraps(hook):
    def wrapper(*args):
        return hook(*args)

    return wrapper


class Decorated(Regression):
    @without_wraps
    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)


class Forgetful(Regression):
    def on_before_optimizer_step(self, optimizer):
        pass


class AroundIt(Forgetful):
    def on_before_optimizer_step(self, optimizer):
        Regression.on_before_optimizer_step(self, optimizer)


def on_the_instance(**options):
    module = Regression(**options)
    before = module.on_before_optimizer_step
    module.on_before_optimizer_step = lambda optimizer: before(optimizer)
    return module


@pytest.mark.parametrize("make", [ThroughAHelper, ByName, Decorated, AroundIt, on_the_instance])
def test_a_hook_that_calls_the_one_above_in_its_own_way_is_not_refused(make):
    weights = []
    for kind in (Regression, make):
        torch.manual_seed(2)
        module = kind(k1=5, clip_norm=0.01)
        for _ in range(2):  # the second fit finds nothing of the first one's watching
            fit(module, batches(5, 4), max_epochs=1)
        weights.append(module.state_dict())
    assert all(torch.equal(*pair) for pair in zip(*(each.values() for each in weights), strict=True))


def test_nothing_is_left_on_the_module_after_a_fit():
    module = ByName(k1=5)
    fit(module, batches(5, 4))
    module._trainer = None
    assert not [name for name in vars(module) if name.startswith("on_")]
    pickle.dumps(module)


@pytest.mark.parametrize("name", ["optimizer_step", "configure_gradient_clipping", "optimizer_zero_grad"])
def test_a_method_that_is_never_called_is_refused(name):
    module = type("Mine", (Regression,), {name: nothing})(k1=5)
    with pytest.raises(InputError, match=rf"Mine\.{name} would never be called.*manual optimization"):
        fit(module, batches(5))


@pytest.mark.parametrize("windows_per_batch", [1, 4])
def test_gradients_are_announced_before_they_are_forgotten(windows_per_batch):
    class Sees(Callback):
        def __init__(self):
            self.seen = []

        def on_before_zero_grad(self, trainer, module, optimizer):
            self.seen.append(module.head.bias.grad is None)
            assert optimizer is trainer.optimizers[0]

    class Mine(Regression):
        seen = 0

        def on_before_zero_grad(self, optimizer):
            self.seen += 1

    module, callback = Mine(k1=5), Sees()
    fit(module, batches(5, windows_per_batch), max_epochs=1, callbacks=[callback])
    assert callback.seen == [True] + 12 * [False]
    assert module.seen == 13


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ((torch.optim.SGD, None), "gave SGD, where the run to be resumed has Adam and ExponentialLR"),
        ((torch.optim.Adam, None), "gave Adam, where the run to be resumed has Adam and ExponentialLR"),
        ((torch.optim.Adam, torch.optim.lr_scheduler.ConstantLR), "gave Adam and ConstantLR, where"),
    ],
)
def test_another_optimizer_or_schedule_is_refused_in_a_run_that_is_continued(now, message, tmp_path):
    def made(optimizer, schedule):
        module = Regression(k1=5)

        def configure():
            chosen = optimizer(module.parameters(), lr=0.1)
            return chosen if schedule is None else ([chosen], [schedule(chosen)])

        module.configure_optimizers = configure
        return module

    saved = SavedAt(tmp_path / "saved.ckpt", 3)
    fit(made(torch.optim.Adam, per_epoch), Waves(1, 3, 5, 4), callbacks=[saved])
    with pytest.raises(InputError, match=message):
        fit(made(*now), Waves(1, 3, 5, 4), resume=saved.path)
