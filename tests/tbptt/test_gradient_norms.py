"""How far gradients reach, in numbers: of a recurrence exactly, of an LSTM by autograd."""

import pytest
import torch
from loops import LANES
from tasks import Leaky, Recurrence
from torch.testing import assert_close

from lit_tbptt import LSTM, RecurrentLM, Task, Window
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.gradient_norms import gradient_norms, measure


def test_the_norms_of_a_recurrence_are_the_powers_of_its_weight():
    inputs = torch.randn(LANES, 23, dtype=torch.float64)
    record = Carry({"h": torch.randn(LANES, 1, dtype=torch.float64)}, (Window(inputs, inputs),))
    norms = gradient_norms(Recurrence(0.7), record, 20)
    assert_close(norms, 0.7 ** torch.arange(1, 22, dtype=torch.float64), rtol=0, atol=1e-12)
    found = measure(norms, 9)
    assert found.ratio_per_token == pytest.approx(0.7, abs=1e-9)
    assert found.fitted == pytest.approx(norms.tolist(), abs=1e-9)
    assert found.tokens_to_1_percent == 13  # .7 ** 13 < .01 < .7 ** 12
    assert found.share_beyond_k2 == pytest.approx((0.7**8 - 0.7**21) / (1 - 0.7**21), abs=1e-9)
    assert measure(torch.tensor([1.0, 2.0, 4.0]), 3).ratio_per_token == pytest.approx(2)
    assert measure(torch.tensor([1.0, 2.0, 4.0]), 3).tokens_to_1_percent is None
    # What a reset has cut, and what has vanished, says nothing about how fast it went.
    cut = measure(torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0]), 3)
    assert (len(cut.fitted), cut.tokens_to_1_percent) == (3, None)
    assert cut.ratio_per_token == pytest.approx(0.5)
    assert measure(torch.tensor([1.0, 0.0, 0.0]), 2).ratio_per_token is None


def test_the_norms_of_an_lstm_are_those_of_autograd_one_state_at_a_time():
    model = RecurrentLM(11, LSTM(5, 2, input_size=7)).double()
    windows = [Window(*torch.randint(11, (2, LANES, 4))) for _ in range(3)]
    windows[1] = windows[1]._replace(reset=torch.tensor([False, True, False]))
    windows[2] = windows[2]._replace(mask=torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]]))
    state = {name: torch.randn(LANES, 2, 5, dtype=torch.float64) for name in ("hidden", "cell")}
    norms = gradient_norms(model, Carry(state, tuple(windows)), 9)
    steps = [step for window in windows for step in window.pieces(1)]
    for back in range(10):
        here = state
        for place, step in enumerate(steps):
            if place == 11 - back:
                here = {name: leaf.detach().requires_grad_() for name, leaf in here.items()}
                given = list(here.values())
            if step.reset is not None:
                here = {name: leaf * ~step.reset[:, None, None] for name, leaf in here.items()}
            loss, _, here, _ = model.window_loss(step, here)
        hidden, cell = torch.autograd.grad(loss, given)
        lanes = (hidden.square().sum((1, 2)) + cell.square().sum((1, 2))).sqrt()
        assert (lanes[1] == 0) == (back >= 7)
        assert norms[back].item() == pytest.approx(lanes[:2].mean().item(), abs=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_state_may_hold_counts_too():
    class Mean(Task):
        core = Leaky()

        def initial_state(self, num_lanes):
            return self.core.initial_state(num_lanes)

        def advance(self, window, state):
            return self.core(window.inputs, state)[1]

        def window_loss(self, window, state):
            outputs, state = self.core(window.inputs, state)
            return outputs[:, :, 0].sum(), window.num_time_steps, state

    inputs = torch.randn(LANES, 6, 7)
    norms = gradient_norms(Mean(), Carry(Mean().initial_state(LANES), (Window(inputs, inputs),)), 4)
    assert_close(norms.float(), 0.7 ** torch.arange(1, 6))


def test_a_complex_state_counts_by_its_size():
    class Rotation(Task):
        turn = torch.tensor(0.5 + 0.5j, dtype=torch.complex128)

        def initial_state(self, num_lanes):
            return torch.zeros(num_lanes, 1, dtype=torch.complex128)

        def advance(self, window, state):
            return self.turn * state + window.inputs

        def window_loss(self, window, state):
            state = self.advance(window, state)
            return state.real.sum(), 1, state

    inputs = torch.randn(LANES, 6, dtype=torch.float64)
    norms = gradient_norms(Rotation(), Carry(Rotation().initial_state(LANES), (Window(inputs, inputs),)), 5)
    sizes = abs(Rotation.turn) ** torch.arange(1, 7, dtype=torch.float64)
    assert_close(norms, sizes, rtol=0, atol=1e-12)


def test_what_overflows_is_cut():
    found = measure(torch.tensor([1.0, 10.0, 100.0, torch.inf, torch.nan]), 3)
    assert found.ratio_per_token == pytest.approx(10)
    assert len(found.fitted) == 3
    assert found.share_beyond_k2 is None
