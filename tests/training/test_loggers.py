"""The rows of metrics.csv in a run that is continued."""

from lit_tbptt import RunFolder
from lit_tbptt.training.loggers import RunCSVLogger


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("step,tokens,train/loss\n100,1000,2.5\n200,2000,2.25\n21")  # of 210
    logger = RunCSVLogger(folder, resume_step=205)
    logger.log_metrics({"tokens": 2100, "train/loss": 2.0}, step=210)
    logger.save()
    rows = ["step,tokens,train/loss", "100,1000,2.5", "200,2000,2.25", "210,2100,2.0"]
    assert folder.metrics.read_text().splitlines() == rows
