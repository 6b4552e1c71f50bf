"""Runs over a loader of the user's own are continued, whenever its iterators look where they are to begin."""

import pytest
from loops import Lazily, SavedAt, batches, fit, pair, same_weights
from tasks import Regression

from lit_tbptt import InputError


@pytest.mark.parametrize("step", [3, 6, 8, 13, 16, 26])
def test_a_lazy_loader_is_continued(step, tmp_path):
    module, again = pair(k1=5, lr=0.1)
    saved = SavedAt(tmp_path / "saved.ckpt", step)
    fit(module, Lazily(), batches(5), max_epochs=3, callbacks=[saved])
    trainer = fit(again, Lazily(), batches(5), max_epochs=3, resume=saved.path)
    assert trainer.global_step == 39
    same_weights(again, module)


def test_a_batch_of_another_number_of_windows_is_not_continued(tmp_path):
    saved = SavedAt(tmp_path / "saved.ckpt", 6)
    fit(Regression(k1=5), Lazily(), callbacks=[saved])
    with pytest.raises(InputError, match="the batch to be continued has 2 windows, where the run to be resumed has 4"):
        fit(Regression(k1=5), Lazily(2), resume=saved.path)
