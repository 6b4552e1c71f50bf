"""Curves of gradient norms that are means over several places."""

import torch
from loops import LANES, fit
from tasks import Batches, Regression
from torch.testing import assert_close

from lit_tbptt import Carry, Window
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
