"""Curves of gradient norms that are means over several places."""

import torch
from loops import LANES, fit
from tasks import Batches, Regression
from torch.testing import assert_close

from lit_tbptt import Carry, RandomTruncation, Window
from lit_tbptt.tbptt.gradient_norms import gradient_norms
from lit_tbptt.training.callbacks.gradient_record import GradientRecord


class Curves(GradientRecord):
    """Keeps every curve, and the step it was measured at."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def reach(self, truncation):
        return 6

    def on_norms(self, trainer, module, norms):
        self.seen.append((trainer.global_step, norms))


class Shifted(Regression):
    """A buffer is part of the graph."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("shift", torch.ones(6, dtype=torch.float64))

    def window_loss(self, window, state):
        loss, count, state = super().window_loss(window, state)
        return loss, count, state * self.shift


def test_it_may_measure_while_a_gradient_is_pending():
    inputs = torch.randn(LANES, 120, dtype=torch.float64)
    results = []
    for callbacks in ([Curves(1)], []):
        torch.manual_seed(2)
        module = Shifted(k1=4, update=RandomTruncation(0.2))
        fit(module, Batches(list(Window(inputs, inputs).pieces(4))), max_epochs=1, callbacks=callbacks)
        results.append(dict(module.state_dict()))
    assert_close(*results, rtol=0, atol=0)


def test_a_record_does_not_grow_with_the_windows_of_a_step():
    class Lengths(Curves):
        longest = 0

        def on_window_end(self, trainer, module, window):
            super().on_window_end(trainer, module, window)
            windows = self._record.context if self._record else ()
            self.longest = max(self.longest, sum(window.num_time_steps for window in windows))

    inputs, curves = torch.randn(LANES, 400, dtype=torch.float64), Lengths(3)
    module = Regression(k1=4, windows_per_step=10)
    fit(module, Batches(list(Window(inputs, inputs).pieces(4)), 10), max_epochs=1, callbacks=[curves])
    assert [step for step, _ in curves.seen] == [3, 6, 9]
    assert 7 <= curves.longest <= 3 * 4 + 6  # 7 tokens take 2 windows, and the last of an epoch may be short


def test_a_curve_is_the_mean_over_the_scored_lanes_of_all_places():
    inputs, mask = torch.randn(LANES, 36, dtype=torch.float64), torch.ones(LANES, 36, dtype=torch.bool)
    mask[1:, 13], mask[0, 15], mask[:, 29] = False, False, False
    whole, curves = Window(inputs, inputs, mask=mask), Curves(3, 3)
    module = Regression(lr=0.0, k1=4)
    fit(module, Batches(list(whole.pieces(4))), max_epochs=1, callbacks=[curves])

    def at(end):
        record = Carry(module.initial_state(LANES), (whole.split(end)[0],) if end < 36 else (whole,))
        return gradient_norms(module, record, 6) * mask[:, end - 1].sum(), mask[:, end - 1].sum()

    # After windows 4 and 7: the first record begins after window 1, the second one after window 4.
    assert [step for step, _ in curves.seen] == [4, 7]
    for (step, norms), ends in zip(curves.seen, [(16, 14, 12), (28, 26, 24)], strict=True):
        assert ends[0] == 4 * step
        sums, counts = zip(*map(at, ends), strict=True)
        assert_close(norms, sum(sums) / sum(counts), rtol=0, atol=1e-12)
