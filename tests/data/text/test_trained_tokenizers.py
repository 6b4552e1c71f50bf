"""Byte pairs: the merges, any text there and back, the sample, and the cache."""

import copy
import json
import os
import pickle
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from letters import corpus

from lit_tbptt.data.text import trained_tokenizers
from lit_tbptt.data.text.corpus import open_corpus
from lit_tbptt.data.text.tokenizer_choice import from_description, make_tokenizer
from lit_tbptt.data.text.trained_tokenizers import BytePairTokenizer, first_bytes
from lit_tbptt.errors import InputError

TRAIN = ["ab ab ab abc abc", "xyz"]
SMALL = make_tokenizer("bpe", ["the <eos> of the\r\n  été <eos> of the été\n"], 274)


def merged(tokenizer):
    """The texts of the tokens that are not single bytes."""
    return [tokenizer.decode([token]) for token in range(256, tokenizer.eos)]


def test_the_most_frequent_pairs_are_merged():
    tokenizer = make_tokenizer("bpe", TRAIN, 300)
    # ab 5 times, " ab" 4 times, " abc" twice; what occurs once is left as it is, so the limit is not reached.
    assert merged(tokenizer) == ["ab", " ab", " abc"]
    assert (tokenizer.vocabulary_size, tokenizer.eos, tokenizer.unknown) == (260, 259, None)
    (ids,) = tokenizer.encode_documents(["ab abc abx"])
    assert [tokenizer.decode([token]) for token in ids.tolist()] == ["ab", " abc", " ab", "x", "\n"]


@pytest.mark.parametrize(("limit", "tokens"), [(257, []), (258, ["ab"]), (259, ["ab", " ab"])])
def test_the_limit_includes_the_bytes_and_eos(limit, tokens):
    tokenizer = make_tokenizer("bpe", TRAIN, limit)
    assert merged(tokenizer) == tokens
    assert tokenizer.vocabulary_size == limit


def test_a_limit_far_beyond_the_text():
    assert merged(make_tokenizer("bpe", TRAIN, 10**9)) == ["ab", " ab", " abc"]


def test_the_default_limit():
    words = ["".join(letters) for letters in product("abcdefghijklmnopq", repeat=3)]
    assert make_tokenizer("bpe", [" ".join(words * 2)]).vocabulary_size == 4096


@pytest.mark.parametrize("name", ["bpe", "word"])
@given(
    texts=st.lists(
        st.text(st.one_of(st.sampled_from("ab \n\r\t'1.\u2028\xa0\u0301"), st.characters(codec="utf-8"))), max_size=3
    )
)
@example(texts=["it 's\n'll a\n\n b\n b \n12 a", "a\n\n\n b", ""])
def test_a_long_text_is_encoded_in_parts_with_the_same_ids(name, texts):
    training = ["a ab  b\n\nab  's a \nab b\n\n12 a \n'll a  \r\na  \r\nb a\n\n\n b\n\n\n b"]
    tokenizer = make_tokenizer(name, training)
    expected = [ids.tolist() for ids in tokenizer.encode_documents(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_tokenizers, "_PART", 2)
        patch.setattr(trained_tokenizers, "_PIECE", 2 if name == "word" else 1024)
        assert [ids.tolist() for ids in tokenizer.encode_documents(texts)] == expected
        again = make_tokenizer(name, training)
    assert again.describe() == tokenizer.describe()


def test_parts_are_cut_where_a_piece_ends():
    text = "ab\ncd  ef g\n\nh"
    assert list(trained_tokenizers._parts(text, 2)) == ["ab\n", "cd  ef", " g\n\nh"]


@given(st.text())
@example("a<eos>b <eos>")
@example("  two spaces, \r\n\r\n\x00\x1b \u2028\ufeff \U0001f600 e\u0301")
def test_any_text_is_restored(text):
    (ids,) = SMALL.encode([text])
    assert SMALL.decode(ids.tolist()) == text
    assert SMALL.eos not in ids
    assert ids.max(initial=0) < SMALL.vocabulary_size


def test_an_eos_written_in_the_text_is_text_in_every_copy():
    copies = [from_description(json.loads(json.dumps(SMALL.describe()))), copy.deepcopy(SMALL)]
    for tokenizer in [*copies, pickle.loads(pickle.dumps(SMALL))]:
        assert isinstance(tokenizer, BytePairTokenizer)
        (ids,) = tokenizer.encode_documents(["<eos>"])
        assert ids.tolist().index(tokenizer.eos) == len(ids) - 1 > 0
        assert tokenizer.num_bytes == 45


_PRINT = """
import hashlib, json
from lit_tbptt.data.text.tokenizer_choice import make_tokenizer
texts = [f"{i * i % 97} words {i % 13}\\n" * 3 for i in range(999)]
print(hashlib.sha256(json.dumps(make_tokenizer("bpe", texts, 700).describe()).encode()).hexdigest())
"""


def test_every_process_and_number_of_threads_gives_the_same():
    found = set()
    for threads in ("1", "2", "5"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-c", _PRINT]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def test_the_sample_is_spread_over_the_corpus(monkeypatch):
    monkeypatch.setattr(trained_tokenizers, "_PIECE", 3)
    monkeypatch.setattr(trained_tokenizers, "_SAMPLE_BYTES_PER_TOKEN", 0.05)
    texts = ["abcdefgh", "ijkl", "éop", *["qrs"] * 7]  # pieces of 3, 3, 2, 3, 1, 4, 3 ... bytes; the limit is 13
    tokenizer = BytePairTokenizer.train(texts, 260)
    assert trained_tokenizers._spread(trained_tokenizers._pieces(texts), 13) == ["abc", "l", "qrs", "qrs"]
    assert tokenizer.num_bytes == 10


def test_a_stream_is_read_no_further_than_its_sample():
    def batches():
        yield ["ab", "cé"]
        yield ["éf", "gh"]
        raise AssertionError

    assert list(first_bytes(batches(), 9)) == [["ab", "cé"], ["éf", "g"]]
    assert list(first_bytes([["ab", "cé"]], 4)) == [["ab", "c"]]  # no half of a character
    assert list(first_bytes([["ab"]], 7)) == [["ab"]]


def test_a_streams_tokenizer_is_trained_on_its_start(monkeypatch, tmp_path):
    monkeypatch.setattr(trained_tokenizers, "_SAMPLE_BYTES_PER_TOKEN", 2)
    rows = corpus(*["ab ab"] * 200, *["xyz"] * 500).to_iterable_dataset()
    tokenizer, _ = open_corpus({"train": rows}, "bpe", 260, tmp_path, True)
    assert tokenizer.num_bytes == 520
    assert merged(tokenizer) == ["ab", " ab"]


def test_the_merges_are_found_again_and_belong_to_the_token_files(monkeypatch, tmp_path):
    rows = corpus(*TRAIN)
    tokenizer, splits = open_corpus({"train": rows}, "bpe", 258, tmp_path, False)
    larger, others = open_corpus({"train": rows}, "bpe", 259, tmp_path, False)
    assert (tokenizer.vocabulary_size, larger.vocabulary_size) == (258, 259)
    assert splits["train"].folder != others["train"].folder
    monkeypatch.setattr(trained_tokenizers, "_train", None)
    again, same = open_corpus({"train": rows}, "bpe", 258, tmp_path, False)
    assert (again.describe(), same) == (tokenizer.describe(), splits)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_limit_below_the_bytes_is_refused_before_anything_is_read(streaming, tmp_path):
    rows = corpus("ab", "c")
    documents = {"train": rows.to_iterable_dataset() if streaming else rows}
    with pytest.raises(InputError, match=r"data\.vocabulary_limit=256 with data\.tokenizer='bpe': must be 257 or more"):
        open_corpus(documents, "bpe", 256, tmp_path, streaming)
