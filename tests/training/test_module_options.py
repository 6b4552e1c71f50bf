"""What is summed, when lanes are reset, and tasks of every shape, through the Trainer."""

from fractions import Fraction

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from loops import LANES, STEPS, batches, by_hand, fit, pair, same_weights, sequence
from tasks import EXACT_GRADIENTS, Batches, Regression, windows_of
from torch import nn
from torch.testing import assert_close

from lit_tbptt import Cell, InputError, LitTBPTT, Window


class Kept(Callback):
    """The windows as they were trained on, and the sum of their gradients."""

    def __init__(self):
        self.windows, self.gradient = [], 0

    def on_window_end(self, trainer, module, window):
        self.windows.append(window)
        self.gradient = self.gradient + torch.cat([weight.grad.flatten() for weight in module.parameters()])


class Leaky(Cell):
    """h_t = w h_{t-1} + x_t."""

    def __init__(self):
        super().__init__()
        self.input_size = self.output_size = 1
        self.w = nn.Parameter(torch.tensor(0.5))

    def initial_state(self, num_lanes):
        return (self.w.new_zeros(num_lanes, 1),)

    def step(self, x, state):
        output = self.w * state[0] + x
        return output, (output,)


class Sums(LitTBPTT):
    """The sum of what a core puts out, with frozen weights."""

    def __init__(self, core, **options):
        super().__init__(loss_reduction="sum", **options)
        self.core = core

    def initial_state(self, num_lanes):
        return self.core.initial_state(num_lanes)

    def window_loss(self, window, state):
        outputs, state = self.core(window.inputs, state)
        return outputs.sum(), outputs.numel(), state

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize(("k1", "k2"), EXACT_GRADIENTS)
@pytest.mark.parametrize("recompute_every", [None, 2])
def test_the_exact_table_with_a_core_of_ones_own(k1, k2, recompute_every):
    kept, ones = Kept(), torch.ones(1, 12, 1, dtype=torch.float64)
    module = Sums(Leaky(), k1=k1, k2=k2, recompute_every=recompute_every)
    fit(module, Batches(windows_of(ones, ones, k1), 5), max_epochs=1, callbacks=[kept])
    assert Fraction(kept.gradient.item()) == Fraction(EXACT_GRADIENTS[k1, k2])


def test_the_sum_is_the_mean_times_the_targets():
    summed, mean = pair(k1=5, lr=0.1)
    summed.loss_reduction, summed.lr = "sum", 0.1 / (LANES * 5)
    fit(summed, batches(5))
    fit(mean, batches(5))
    same_weights(summed, mean)


def test_every_epoch_resets_every_lane_whatever_the_data_say():
    model, expected = pair(k1=5, lr=0.1)
    fit(model, Batches([window._replace(reset=None) for window in windows_of(*sequence(), 5)], 4))
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5), 2))


@pytest.mark.parametrize("options", [{"carry_state": False}, {"state_drop_probability": 1.0}])
def test_without_a_carried_state_every_window_is_reset(options):
    everywhere = [(window, lane) for window in range(STEPS // 5) for lane in range(LANES)]
    model, expected = pair(k1=5, lr=0.1)
    _, model = pair(k1=5, lr=0.1, **options)
    fit(model, batches(5, 4))
    same_weights(model, by_hand(expected, windows_of(*sequence(), 5, everywhere), 2))


def test_without_a_carried_state_every_k1_steps_of_an_evaluation_are_reset():
    model = Regression(k1=5, carry_state=False).double()
    losses = [model.window_loss(window, model.initial_state(LANES))[0] for window in windows_of(*sequence(), 5)]
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "precision": "64-true"}
    trainer = Trainer(accelerator="cpu", **options)
    trainer.validate(model, batches(15, 2), verbose=False)
    expected = sum(losses).item() / (LANES * STEPS)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, abs=1e-6)


def test_states_are_dropped_by_lane_and_window():
    probability, kept = 0.3, Kept()
    model, expected = pair(k1=1, lr=0.01)
    _, model = pair(k1=1, lr=0.01, state_drop_probability=probability)
    fit(model, batches(1, 4), callbacks=[kept])
    resets = torch.stack([window.reset for window in kept.windows]).view(2, STEPS, LANES)
    assert resets[:, 0].all()
    drawn = resets[:, 1:].double()
    assert drawn.mean().item() == pytest.approx(probability, abs=0.07)
    # Lanes are dropped independently: three of them alike half as often as not would be something else.
    assert 0.1 < (drawn.sum(-1) == 0).double().mean().item() < 0.55
    same_weights(model, by_hand(expected, kept.windows, 1))


def test_dropping_states_and_resets_of_the_data_add_up():
    kept = Kept()
    fit(Regression(k1=5, state_drop_probability=0.5), batches(5, 4, resets=[(4, 1), (7, 0)]), callbacks=[kept])
    assert kept.windows[4].reset[1]
    assert kept.windows[7].reset[0]


class Everything(LitTBPTT):
    """Classification of some steps of `[lane, time, feature]` inputs, with a state of dicts, tuples and lists."""

    def __init__(self, **options):
        super().__init__(loss_reduction="sum", **options)
        self.first, self.second, self.head = nn.GRUCell(7, 5), nn.LSTMCell(5, 4), nn.Linear(4, 6)

    def initial_state(self, num_lanes):
        zeros = self.head.weight.new_zeros
        seen = torch.zeros(num_lanes, dtype=torch.long, device=self.device)
        return {"low": [zeros(num_lanes, 5)], "high": (zeros(num_lanes, 4), {"cell": zeros(num_lanes, 4)}), "n": seen}

    def window_loss(self, window, state):
        (low,), (high, cell) = state["low"], (state["high"][0], state["high"][1]["cell"])
        total, count = 0.0, 0
        for x, y, scored in zip(
            *(part.unbind(1) for part in (window.inputs, window.targets, window.mask)), strict=True
        ):
            low = self.first(x, low)
            high, cell = self.second(low, (high, cell))
            losses = nn.functional.cross_entropy(self.head(high), y, reduction="none")
            total, count = total + losses[scored].sum(), count + scored.sum()
        return total, count, {"low": [low], "high": (high, {"cell": cell}), "n": state["n"] + window.num_time_steps}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("recompute_every", [None, 3])
@pytest.mark.parametrize("k1", [1, 4, 10, 20])
def test_any_task_any_state(k1, recompute_every):
    whole = Window(torch.randn(3, 20, 7), torch.randint(6, (3, 20)), None, torch.rand(3, 20) < 0.6)
    whole = whole._replace(inputs=whole.inputs.double())
    torch.manual_seed(3)
    expected = Everything().double()
    expected.window_loss(whole, expected.initial_state(3))[0].backward()
    torch.manual_seed(3)
    kept, module = Kept(), Everything(k1=k1, k2=20, recompute_every=recompute_every)
    fit(module, Batches(list(whole.pieces(k1)), 2), max_epochs=1, callbacks=[kept])
    gradient = torch.cat([weight.grad.flatten() for weight in expected.parameters()])
    assert_close(kept.gradient, gradient, rtol=0, atol=1e-12)
    # The carried state is that of the far edge: 20 - k1 tokens before the next window.
    assert module.carry.state["n"].tolist() == [k1] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_drop_probability": 1.5}, r"state_drop_probability=1\.5"),
        ({"k1": 5, "k2": 9, "carry_state": False}, "k2=9 with carry_state=False.*leave k2 out"),
        ({"recompute_every": 1}, "recompute_every=1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LitTBPTT(**options)
