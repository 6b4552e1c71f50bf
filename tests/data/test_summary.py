"""What is said of a corpus before a run."""

import pytest
from letters import corpus, stream_of

from lit_tbptt import Rank
from lit_tbptt.data.summary import corpus_table, long_words, reading_cost
from lit_tbptt.data.text.token_file import token_file
from lit_tbptt.data.text.tokenizer_choice import make_tokenizer
from lit_tbptt.data.text.tokenizers import ByteTokenizer


def test_the_share_of_unknown_tokens_is_in_the_table(tmp_path):
    tokenizer = make_tokenizer("word", ["the cat saw\n"])
    splits = {
        "train": token_file(corpus("the cat\nsaw the cat\n"), tokenizer, tmp_path, "train"),
        "validation": token_file(corpus("the dog saw the man\na cat\n"), tokenizer, tmp_path, "validation"),
    }
    assert corpus_table(splits, tokenizer).splitlines() == [
        "split            documents          tokens           bytes   bytes/token     <unk>",
        "train                    1               7              20         2.857       0 %",
        "validation               1               9              26         2.889    33.3 %",
        "word tokenizer, vocabulary of 5",
        "no bits per byte of validation: <unk> stands for text that the vocabulary does not have, and costs the same "
        "however long that is",
    ]
    splits = {"train": token_file(corpus("é"), ByteTokenizer(), tmp_path, "train")}
    assert corpus_table(splits, ByteTokenizer()).splitlines() == [
        "split            documents          tokens           bytes   bytes/token",
        "train                    1               3               2         0.667",
        "byte tokenizer, vocabulary of 257",
        "no validation split: nothing is validated",
    ]


def test_a_stream_without_a_validation_split_says_that_nothing_is_validated():
    table = corpus_table({"train": stream_of(["ab", "cd"])}, ByteTokenizer())
    assert "no validation split: nothing is validated; nothing is held out of a stream" in table
    assert "load_options.data_files" in table


@pytest.mark.parametrize(("name", "length", "said"), [("word", 41, True), ("word", 40, False), ("char", 41, False)])
def test_words_that_are_lines_are_noticed(name, length, said):
    tokenizer = make_tokenizer(name, ["x" * length])
    notes = long_words(tokenizer, float(length))
    assert ["41 bytes on average" in note and "Chinese" in note for note in notes] == ([True] if said else [])


@pytest.mark.parametrize(
    ("num_readers", "num_ranks", "times"), [(1, 1, None), (2, 2, None), (6, 2, None), (1, 3, "3.0"), (2, 3, "2.0")]
)
def test_the_cost_of_readers_that_processes_share_is_told(num_readers, num_ranks, times):
    cost = reading_cost(num_readers, [Rank(rank, num_ranks).share(6) for rank in range(num_ranks)])
    assert cost == [] if times is None else f"read the stream {times} times" in cost[0]
