"""Bars while a corpus is prepared: what they count, and that nothing of them stays."""

import sys
from functools import partial

import pytest
from letters import corpus
from processes import wait_until
from tqdm.auto import tqdm

from lit_tbptt.data.progress_bar import progress_bar
from lit_tbptt.data.text.corpus import open_corpus


class Screen:
    """What has been written to stderr so far."""

    def __init__(self, capfd):
        self.capfd, self.written = capfd, ""

    def shows(self, text):
        self.written += self.capfd.readouterr().err
        return text in self.written

    def wait_for(self, text):
        wait_until(lambda: self.shows(text), lambda: f"{text!r} is not in {self.written!r}")

    def is_clear(self):
        """Whether the last line has been overwritten with spaces."""
        assert self.shows("")
        *_, last, after = self.written.split("\r")
        return after == "" and last.strip() == "" and "\n" not in self.written


@pytest.fixture
def screen(capfd, monkeypatch):
    # The variable that conftest sets is looked at when datasets is imported.
    monkeypatch.setattr(sys.modules["datasets.utils.tqdm"], "_hf_datasets_progress_bars_disabled", False)
    return Screen(capfd)


def test_a_bar_is_drawn_while_the_first_part_is_worked_on(screen):
    with progress_bar([b"abc", b"de"], "count", 5) as read:
        assert next(read) == b"abc"
        screen.wait_for("count:   0%")
        assert next(read) == b"de"
        screen.wait_for("3/5")
        screen.written = ""
        screen.wait_for("3/5")  # though nothing has been counted since
        assert list(read) == []
    assert screen.is_clear()


def test_a_bar_is_removed_where_the_work_is_broken_off(screen):
    def work():
        with progress_bar([[1, 2]], "count", 2) as read:
            next(read)
            screen.wait_for("0/2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert screen.is_clear()


def waiting_for(screen, bars, batch):
    """Gives a batch of rows when the bar of each pass shows that the batch before is done."""
    if len(batch["text"]) < 1000:
        screen.wait_for(next(bars))
    return batch


def test_a_stored_corpus_has_a_bar_for_its_vocabulary_and_for_its_tokens(screen, tmp_path):
    bars = iter(["vocabulary:  81%", "tokenize train:  81%"])
    rows = corpus(*(["ab", "c"] * 617)).with_transform(partial(waiting_for, screen, bars))
    tokenizer, splits = open_corpus({"train": rows}, "char", None, tmp_path, False)
    assert (tokenizer.characters, splits["train"].num_documents, next(bars, None)) == ("abc", 1234, None)
    assert screen.is_clear()


def waiting_at_row_15(screen, row, number):
    """Rows before are looked at when a stream is opened."""
    if number == 15:
        screen.wait_for("vocabulary: 0 documents")
    return row


def test_a_stream_has_a_bar_for_its_vocabulary(screen, tmp_path):
    rows = corpus(*["ab", "c"] * 10).to_iterable_dataset()
    rows = rows.map(partial(waiting_at_row_15, screen), with_indices=True)
    tokenizer, _ = open_corpus({"train": rows}, "char", None, tmp_path, True)
    assert tokenizer.characters == "abc"
    assert screen.is_clear()


def test_a_bar_that_is_switched_off_is_not_shown(capfd):
    with progress_bar([[1, 2], [3]], "count", 3) as read, tqdm(desc="started later", delay=1, miniters=0) as later:
        assert next(read) == [1, 2]
        wait_until(lambda: later.update(0))
        assert list(read) == [[3]]
    assert "started later" in (shown := capfd.readouterr().err)
    assert "count" not in shown
