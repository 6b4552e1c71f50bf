"""A horizon that is changed while a run goes on: saved, and taken up again by the run that continues it."""

import pytest
from lightning.pytorch import Callback
from resuming import everything, fit_text, per_step, same

from lit_tbptt import InputError, RunFolder


class Longer(Callback):
    """Sets another horizon after some steps."""

    def __init__(self, horizons):
        self.horizons, self.seen = horizons, {}

    def on_step_end(self, trainer, module):
        module.truncation.k2 = self.horizons.get(trainer.global_step, module.truncation.k2)
        self.seen[trainer.global_step] = module.truncation.k2


HORIZONS = {2: 11, 5: 4, 6: 9}


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 8, 12])
def test_a_run_with_a_changing_horizon_is_continued_to_the_same_bits(stop, tmp_path):
    whole = Longer(HORIZONS)
    expected = everything(*fit_text(tmp_path / "whole" / "v", 3, per_step, k2=7, callbacks=[whole])[:2])
    constant = everything(*fit_text(tmp_path / "constant" / "v", 3, per_step, k2=7)[:2])
    with pytest.raises(AssertionError):
        same(constant, expected)
    first, second = Longer(HORIZONS), Longer(HORIZONS)
    folder = tmp_path / "parts" / "v"
    fit_text(folder, 3, per_step, stop, k2=7, callbacks=[first])
    parts = fit_text(folder, 3, per_step, resume=RunFolder(folder).last, k2=7, callbacks=[second])
    same(everything(*parts[:2]), expected)
    assert first.seen | second.seen == whole.seen
    assert min(second.seen) == stop + 1


def test_a_horizon_that_the_continued_run_asks_for_counts(tmp_path):
    fit_text(tmp_path / "v", 3, per_step, 4, k2=7, callbacks=[Longer({2: 11})])
    _, module, _ = fit_text(tmp_path / "v", 3, per_step, 6, RunFolder(tmp_path / "v").last, k2=7)
    assert module.truncation.k2 == 11
    _, module, _ = fit_text(tmp_path / "v", 3, per_step, 8, RunFolder(tmp_path / "v").last, k2=5)
    assert module.truncation.k2 == 5


def test_a_horizon_below_k1_is_refused_in_a_run(tmp_path):
    with pytest.raises(InputError, match="k2=2 with k1=4"):
        fit_text(tmp_path / "v", 3, per_step, 4, k2=7, callbacks=[Longer({2: 2})])
