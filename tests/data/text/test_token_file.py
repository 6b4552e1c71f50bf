"""Token files: what they hold, and when they are built again."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from letters import corpus
from processes import start, status_of, wait_until

from lit_tbptt.data.text import token_file as module
from lit_tbptt.data.text.documents import load_documents
from lit_tbptt.data.text.token_file import token_file
from lit_tbptt.data.text.tokenizer_choice import make_tokenizer
from lit_tbptt.data.text.tokenizers import ByteTokenizer


def test_a_token_file_holds_every_document_and_its_end(tmp_path):
    file = token_file(corpus("ab", "", "é"), ByteTokenizer(), tmp_path, "train")
    assert file.ids.tolist() == [97, 98, 256, 195, 169, 256]
    assert file.document_ends.tolist() == [3, 6]
    assert (file.num_documents, file.num_empty, file.num_tokens, file.num_bytes) == (2, 1, 6, 4)
    assert (file.dtype, file.bytes_per_token) == ("uint16", 4 / 6)


def test_unknown_tokens_are_counted(tmp_path):
    characters = make_tokenizer("char", ["abc"])
    file = token_file(corpus("ab\ufffd", "dec"), characters, tmp_path, "validation")
    assert (file.num_tokens, file.num_unknown) == (8, 3)
    words = make_tokenizer("word", ["the <unk> cat\n"])
    assert token_file(corpus("the <unk>\nthe cat", "<unk>"), words, tmp_path, "train").num_unknown == 0
    assert token_file(corpus("the dog\na <unk>", "", "<unk>s"), words, tmp_path, "validation").num_unknown == 3
    assert token_file(corpus("ab", "\x00"), ByteTokenizer(), tmp_path, "test").num_unknown == 0


def test_it_is_built_once_and_again_when_data_or_tokenizer_change(tmp_path, monkeypatch):
    built = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda *args: built.append(args) or write(*args))
    first = token_file(corpus("abc"), ByteTokenizer(), tmp_path, "train")
    assert token_file(corpus("abc"), ByteTokenizer(), tmp_path, "train") == first
    assert len(built) == 1
    assert token_file(corpus("abd"), ByteTokenizer(), tmp_path, "train").content != first.content
    token_file(corpus("abc"), make_tokenizer("char", ["abc"]), tmp_path, "train")
    assert len(built) == 3


def test_a_changed_text_file_is_read_again(tmp_path):
    book = tmp_path / "book.txt"
    contents = []
    for text in ("first", "second"):
        book.write_text(text)
        documents = load_documents(str(book), val_fraction=0)["train"]
        contents.append(token_file(documents, ByteTokenizer(), tmp_path / "cache", "train").num_tokens)
    assert contents == [6, 7]


def test_a_build_that_is_cut_off_is_never_found(tmp_path, monkeypatch):
    class Dying(ByteTokenizer):
        def encode(self, texts):
            if "b" in texts:
                raise KeyboardInterrupt
            return super().encode(texts)

    documents = corpus("a" * 5_000_000, "b")
    with pytest.raises(KeyboardInterrupt):
        token_file(documents, Dying(), tmp_path, "train")
    assert [path.name for path in tmp_path.iterdir()] == ["builds.lock"]
    assert token_file(documents, ByteTokenizer(), tmp_path, "train").num_tokens == 5_000_003


class Waiting(ByteTokenizer):
    """Says that it has begun, and never ends."""

    def encode(self, texts):
        Path("begun").touch()
        time.sleep(10**6)


def build_without_end(cache):
    token_file(corpus("abc"), Waiting(), cache, "train")


def test_what_killed_builds_leave_is_removed_by_the_next(tmp_path):
    cache, log = tmp_path / "cache", tmp_path / "log"
    (tmp_path / "alive").mkdir()
    dead, alive = (start(build_without_end, cache, log=log, folder=folder) for folder in (tmp_path, tmp_path / "alive"))
    try:
        for folder, process in ((tmp_path, dead), (tmp_path / "alive", alive)):
            wait_until((folder / "begun").exists, log.read_text)
            assert process.is_alive()
        assert len(list(cache.glob("*.part"))) == 2
        os.kill(dead.pid, signal.SIGKILL)
        assert status_of(dead) == -signal.SIGKILL
        (cache / "of another program.part").mkdir()
        token_file(corpus("abcd"), ByteTokenizer(), cache, "train")
        left = list(cache.glob("*.part"))
        assert len(left) == 2
        shutil.rmtree(cache / "of another program.part")
    finally:
        alive.kill()
        alive.join()
    token_file(corpus("abcde"), ByteTokenizer(), cache, "train")
    assert not list(cache.glob("*.part"))


def test_ids_are_mapped_and_not_read(tmp_path):
    assert isinstance(token_file(corpus("abc"), ByteTokenizer(), tmp_path, "train").ids, np.memmap)
