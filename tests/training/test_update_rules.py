"""Update rules in the training loop: clipping, precision, schedules, step limits, several processes, closures."""

import inspect
import os

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from loops import LANES, batches, fit, pair, same_weights, sequence
from processes import together
from tasks import Batches, Regression, windows_of
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.testing import assert_close

from lit_tbptt import (
    DivergenceError,
    HessianFree,
    InputError,
    LitTBPTT,
    RandomTruncation,
    StepPerWindow,
    StepPerWindows,
    StepWithClosure,
)
from lit_tbptt.tbptt.gauss_newton import Linearization


class Masked(LitTBPTT):
    """A GRU in float64 that predicts a number a step, where the mask says so."""

    def __init__(self, make=None, dropout=0.0, **options):
        super().__init__(**options)
        self.dropout = torch.nn.Dropout(dropout)
        torch.manual_seed(8)
        self.core, self.head, self.make = torch.nn.GRU(1, 5, batch_first=True), torch.nn.Linear(5, 1), make

    def initial_state(self, num_lanes):
        return self.head.weight.new_zeros(num_lanes, 5)

    def predict_window(self, window, state):
        outputs, state = self.core(window.inputs[..., None], state[None].contiguous())
        return self.head(self.dropout(outputs)).squeeze(-1), state[0]

    def outputs_loss(self, outputs, window):
        mask = window.mask_or_ones()
        return (outputs - window.targets)[mask].square().sum(), int(mask.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.2) if self.make is None else self.make(self.parameters())


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, 0.5, max_iter=4, line_search_fn="strong_wolfe")


def hessian_free(parameters):
    return HessianFree(parameters, damping=0.5, max_iterations=8)


RULES = {
    "windows_per_step": ({"windows_per_step": 3, "clip_norm": 0.05}, 3),
    "windows_per_step, sum": ({"windows_per_step": 2, "loss_reduction": "sum", "clip_norm": 1.0}, 4),
    "random truncation": ({"update": RandomTruncation(0.4)}, 2),
    "closure": ({"make": lbfgs}, 2),
    "Hessian-free": ({"make": hessian_free}, 2),
}


def data(rank, num_ranks, windows_per_batch, lanes=6, steps=64):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(lanes, steps, generator=generator, dtype=torch.float64)
    mask = torch.rand(lanes, steps, generator=generator) < torch.linspace(0.2, 0.9, lanes)[:, None]
    ours = slice(rank * lanes // num_ranks, (rank + 1) * lanes // num_ranks)
    windows = windows_of(inputs[ours], inputs.roll(2, 1).cumsum(1).tanh()[ours], 5)
    cut = mask[ours].split(5, 1)
    return Batches([one._replace(mask=part) for one, part in zip(windows, cut, strict=True)], windows_per_batch)


class Exchanges(Callback):
    """Counts how often processes exchange gradients."""

    def __init__(self):
        self.count = 0

    def on_train_start(self, trainer, module):
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, self.exchange)

    def exchange(self, state, bucket):
        self.count += 1
        return allreduce_hook(state, bucket)


def train_all(num_ranks):
    """Weights, steps, and exchanges of gradients, by rule."""
    found = {}
    for name, (options, windows_per_batch) in RULES.items():
        module, exchanges = Masked(k1=5, **options), Exchanges()
        trainer = Trainer(
            max_epochs=2,
            max_steps=3 if "make" in options else -1,  # second-order steps enlarge what is rounded differently
            accelerator="cpu",
            devices=num_ranks,
            strategy="ddp" if num_ranks > 1 else "auto",
            callbacks=[exchanges],
            precision="64-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data(int(os.environ.get("LOCAL_RANK", 0)), num_ranks, windows_per_batch))
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        found[name] = {"weights": weights, "steps": trainer.global_step, "exchanges": exchanges.count}
    return found


def test_every_rule_trains_on_two_processes_as_on_one(tmp_path):
    expected = train_all(1)
    for found in together(tmp_path, 2, train_all, 2):
        for name, (options, _) in RULES.items():
            assert found[name]["steps"] == expected[name]["steps"], name
            torch.testing.assert_close(
                found[name]["weights"], expected[name]["weights"], rtol=0, atol=1e-9 if "make" in options else 1e-12
            )
            if "make" not in options:  # one exchange a step, and one when the buckets are ordered
                assert found[name]["exchanges"] == found[name]["steps"] + 1, name
    assert expected["windows_per_step"]["steps"] == 10
    assert expected["windows_per_step, sum"]["steps"] == 14
    assert 6 < expected["random truncation"]["steps"] < 18


def by_hand(model, windows, windows_per_step, clip_norm, rates):
    model.double()
    rates = iter(rates)
    for _ in range(2):
        state = model.initial_state(LANES)
        for start in range(0, len(windows), windows_per_step):
            model.zero_grad()
            losses, counts = [], 0
            for window in windows[start : start + windows_per_step]:
                loss, count, state = model.window_loss(window, state.detach())
                losses.append(loss)
                counts += count
            (sum(losses) / counts).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            with torch.no_grad():
                rate = next(rates)
                for weight in model.parameters():
                    weight -= rate * weight.grad
    return model


def halved(optimizer):
    return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5), "interval": "step"}


def test_a_step_of_several_windows_is_clipped_once_and_counted_once():
    options = {"k1": 5, "lr": 0.2, "clip_norm": 0.3}
    model, expected = pair(windows_per_step=4, schedule=halved, **options)[0], pair(**options)[1]
    trainer = fit(model, batches(5, 4))
    rates = [0.2 * 0.5 ** (step // 3) for step in range(8)]
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5), 4, 0.3, rates))
    assert (trainer.global_step, model.position.window) == (8, 26)


def test_max_steps_ends_a_run_of_several_windows_a_step():
    model = Regression(k1=5, windows_per_step=2)
    trainer = fit(model, batches(5, 4), max_epochs=-1, max_steps=9)
    assert (trainer.global_step, model.position.window) == (9, 17)


@pytest.mark.parametrize("scale", [2.0**4, 2.0**15])
def test_under_fp16_gradients_of_windows_are_added_before_they_are_unscaled(scale):
    data = tuple(part.float() for part in sequence())
    full, half = pair(k1=5, lr=0.1, windows_per_step=4, clip_norm=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    fit(full, batches(5, 4, data), precision="32-true")
    fit(half, batches(5, 4, data), precision=None, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    start = pair(k1=5)[0].state_dict()
    for name, value in full.state_dict().items():
        moved = (value - start[name]).norm()
        assert 0 < (half.state_dict()[name] - value).norm() < 0.02 * moved


def test_batches_must_hold_whole_steps():
    with pytest.raises(
        InputError, match=r"windows_per_step=3 with 4 windows in a batch: .* multiple of windows_per_st"
    ):
        fit(Regression(k1=5, windows_per_step=3), batches(5, 4))
    with pytest.raises(InputError, match=r"windows_per_step=2 with update=RandomTruncation: give one of them"):
        Regression(windows_per_step=2, update=RandomTruncation())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows_per_step": 2.5}, "windows_per_step=2.5: must be a whole number"),
        ({"windows_per_step": "2"}, "windows_per_step='2': must be a whole number"),
        ({"update": RandomTruncation}, "update=<class .*: must be an Update object"),
        ({"update": "RandomTruncation"}, "update='RandomTruncation': must be an Update object"),
        ({"update": RandomTruncation(), "carry_state": False}, "RandomTruncation with carry_state=False"),
    ],
)
def test_settings_are_checked_when_they_are_given(options, message):
    unchecked = inspect.unwrap(StepPerWindows.__init__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepPerWindows, "__init__", unchecked)
        with pytest.raises(InputError, match=message):
            inspect.unwrap(LitTBPTT.__init__)(Regression.__new__(Regression), **options)


def test_an_update_returns_what_it_did():
    class Forgets(StepPerWindow):
        def __call__(self, window, carry, run, optimizer, place):
            super().__call__(window, carry, run, optimizer, place)

    with pytest.raises(InputError, match="Forgets returned None: it must return an Updated"):
        fit(Regression(k1=5, update=Forgets()), batches(5, 4))


def test_what_to_do_where_a_closure_diverges():
    def diverging(parameters):
        return torch.optim.LBFGS(parameters, 1e200, max_iter=2)

    with pytest.raises(DivergenceError, match="lower the learning rate, or use a line search"):
        fit(Masked(diverging, k1=5), data(0, 1, 2))


class Evaluations(Callback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, trainer, module):
        self.seen.append(module.log_book.step_values["evaluations"])


def test_lbfgs_steps_as_by_hand():
    module, other, evaluations = Masked(lbfgs, k1=5), Masked(k1=5).double(), Evaluations()
    trainer = fit(module, data(0, 1, 2), callbacks=[evaluations])
    optimizer = lbfgs(other.parameters())
    for _ in range(2):
        state = other.initial_state(6)
        for window in (window for batch in data(0, 1, 2) for window in batch.windows):

            def closure(window=window, state=state):
                optimizer.zero_grad()
                loss, count, *_ = other.window_loss(window, state)
                (loss / count).backward()
                return loss / count

            optimizer.step(closure)
            state = other.window_loss(window, state)[2].detach()
    torch.testing.assert_close(dict(module.state_dict()), dict(other.state_dict()), rtol=0, atol=1e-12)
    assert isinstance(module.update, StepWithClosure)
    assert trainer.global_step == len(evaluations.seen) == 26
    assert max(evaluations.seen) > 2


def test_a_later_fit_may_have_another_optimizer():
    module = Masked(lbfgs, k1=5)
    fit(module, data(0, 1, 2), max_steps=1)
    module.make, module.clip_norm = None, 0.04
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, data(0, 1, 2), max_steps=1)
    assert type(module.update) is StepPerWindow
    moved = torch.cat([(value - before[name]).flatten() for name, value in module.state_dict().items()]).norm()
    assert_close(moved, torch.tensor(0.2 * 0.04, dtype=torch.float64), rtol=1e-4, atol=0)  # the rate times clip_norm


def test_hessian_free_steps_as_by_hand():
    module, other, evaluations = Masked(hessian_free, k1=5), Masked(k1=5).double(), Evaluations()
    fit(module, data(0, 1, 2), callbacks=[evaluations])
    optimizer = hessian_free(other.parameters())
    for _ in range(2):
        state = other.initial_state(6)
        for window in (window for batch in data(0, 1, 2) for window in batch.windows):

            def loss(window=window, state=state):
                total, count, *_ = other.window_loss(window, state)
                return total / count

            def closure(loss=loss):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                return value

            def linearize(window=window, state=state):
                outputs = other.predict_window(window, state)[0]
                count = int(window.mask_or_ones().sum())
                return Linearization(outputs, lambda z: other.outputs_loss(z, window)[0], other.parameters(), count)

            optimizer.linearize, optimizer.loss_only = linearize, loss
            optimizer.step(closure)
            state = other.window_loss(window, state)[2].detach()
    torch.testing.assert_close(dict(module.state_dict()), dict(other.state_dict()), rtol=0, atol=1e-9)
    assert min(evaluations.seen) >= 2


def test_every_evaluation_of_a_step_sees_the_same_dropout():
    """At a rate that changes nothing, all losses of a step are equal, and so is the curvature's."""
    losses = []

    class Watched(HessianFree):
        def step(self, closure=None):
            with torch.enable_grad():
                found = [closure(), self.loss_only(), closure(), self.loss_only()]
                vector = [torch.ones_like(part) for part in self.param_groups[0]["params"]]
                products = [torch.cat([part.flatten() for part in self.linearize().product(vector)]) for _ in range(2)]
            losses.append(found)
            torch.testing.assert_close(*products, rtol=0, atol=0)
            return found[0]

    fit(Masked(Watched, k1=5, dropout=0.5), data(0, 1, 2), max_epochs=1)
    assert len(losses) == 13
    for found in losses:
        assert len(set(map(float, found))) == 1
    assert len({float(found[0]) for found in losses}) == 13


def test_hessian_free_needs_outputs():
    model = Regression(k1=5)
    model.configure_optimizers = lambda: HessianFree(model.parameters())
    with pytest.raises(InputError, match="Regression must define predict_window: products with the curvature"):
        fit(model, batches(5, 4))


@pytest.mark.parametrize(
    ("options", "trainer_options", "message"),
    [
        ({"clip_norm": 1.0}, {}, "clip_norm=1.0 with LBFGS"),
        ({"windows_per_step": 2}, {}, "LBFGS evaluates a window several times in a step, and StepPerWindows only once"),
        ({"update": RandomTruncation()}, {}, "RandomTruncation only once"),
        (
            {},
            {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
            "with LBFGS: .* this precision scales it",
        ),
    ],
)
def test_what_does_not_go_with_a_closure_is_refused(options, trainer_options, message):
    with pytest.raises(InputError, match=message):
        fit(Masked(lbfgs, k1=5, **options), data(0, 1, 2), **trainer_options)


def test_a_run_that_failed_inside_a_segment_leaves_nothing_for_the_next():
    class Fails(Callback):
        def on_window_end(self, trainer, module, window):
            if module.position.window == 3:
                raise RuntimeError("no more")

    update = RandomTruncation(0.01)
    with pytest.raises(RuntimeError, match="no more"):
        fit(Masked(k1=5, update=update), data(0, 1, 2), callbacks=[Fails()])
    again, expected = Masked(k1=5, update=update), Masked(k1=5, update=RandomTruncation(0.01))
    fit(again, data(0, 1, 2))
    fit(expected, data(0, 1, 2))
    assert all(map(torch.equal, again.state_dict().values(), expected.state_dict().values()))
