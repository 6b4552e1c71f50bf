"""Text from tokens one by one: the pieces are whole characters, and together the decoded whole."""

import random

import pytest
import tokenizers as hf
from tokenizers import models, pre_tokenizers, trainers

from lit_tbptt.data.text.decoding import IncrementalDecoder, StopText
from lit_tbptt.data.text.tokenizer_choice import make_tokenizer
from lit_tbptt.data.text.tokenizers import LibraryTokenizer
from lit_tbptt.errors import InputError

TEXT = "the cat, 北京 saw\nthe \U0001f600 dog é\u0301 …\n\nthe end \ufffd\n"


def byte_pairs():
    library = hf.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = hf.decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator([TEXT] * 3, trainer)
    return LibraryTokenizer("byte pairs", library)


def sentence_pieces():
    """As LLaMA has them: spaces are part of words, and what is not in the vocabulary is bytes."""
    words = {"▁the": 1.0, "▁cat": 1.0, "▁": 2.0, "e": 1.0, ",": 1.0, "<unk>": 9.0}
    vocabulary = [(word, -cost) for word, cost in words.items()] + [(f"<0x{i:02X}>", -5.0) for i in range(256)]
    library = hf.Tokenizer(models.Unigram(vocabulary, 5, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = hf.decoders.Sequence(
        [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse(), hf.decoders.Strip(" ", 1, 0)]
    )
    return LibraryTokenizer("sentence pieces", library)


TOKENIZERS = {
    "byte": lambda: make_tokenizer("byte", []),
    "char": lambda: make_tokenizer("char", [TEXT]),
    "word": lambda: make_tokenizer("word", [TEXT]),
    "bpe": lambda: make_tokenizer("bpe", [TEXT] * 3, 283),
    "byte pairs": byte_pairs,
    "sentence pieces": sentence_pieces,
}


def pieces(tokenizer, start, ids):
    decoder = IncrementalDecoder(tokenizer, start)
    return [*(decoder.add(token) for token in ids), decoder.end()]


@pytest.mark.parametrize("prompt", ["", "the", "the cat,", "the cat, 北"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_of_text_are_the_text(name, prompt):
    tokenizer = TOKENIZERS[name]()
    start = [tokenizer.eos, *tokenizer.encode([prompt])[0].tolist()]
    ids = tokenizer.encode_documents([TEXT])[0].tolist() * 2
    together = "".join(pieces(tokenizer, start, ids))
    assert together == tokenizer.decode([*start, *ids]).removeprefix(tokenizer.decode(start))
    assert name == "word" or TEXT in together


@pytest.mark.parametrize("name", ["byte", "char", "word", "bpe", "byte pairs"])
def test_the_pieces_of_any_tokens_are_what_they_decode_to_together(name):
    tokenizer, draw = TOKENIZERS[name](), random.Random(3)
    for _ in range(20):
        ids = [draw.randrange(tokenizer.vocabulary_size) for _ in range(60)]
        assert "".join(pieces(tokenizer, [tokenizer.eos], ids)) == tokenizer.decode([tokenizer.eos, *ids])[1:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aé", ["a", "", "é", ""]),
        ("\U0001f600b", ["", "", "", "\U0001f600", "b", ""]),
        (b"\xe5\x8cz", ["", "", "\ufffdz", ""]),
        (b"\xff" * 10, [*[""] * 8, "\ufffd" * 6, "\ufffd", "\ufffd" * 3]),
        (b"a\xf0\x9f", ["a", "", "", "\ufffd"]),
    ],
)
def test_a_character_is_handed_out_when_it_is_whole(text, expected):
    ids = list(text if isinstance(text, bytes) else text.encode())
    assert pieces(make_tokenizer("byte", []), [256], ids) == expected


def test_a_token_costs_no_more_late_in_a_text():
    tokenizer, lengths = byte_pairs(), []
    decode = tokenizer.decode
    tokenizer.decode = lambda ids: lengths.append(len(ids)) or decode(ids)
    (ids,) = tokenizer.encode([TEXT * 20])
    decoder = IncrementalDecoder(tokenizer, [tokenizer.eos])
    for token in ids.tolist():
        decoder.add(token)
    assert max(lengths) < 12


STOPS = {
    "in one piece": (["ab", "cSTOPd", "e"], "STOP", ["ab", "c", ""], ""),
    "over pieces": (["aS", "T", "OP", "b"], "STOP", ["a", "", "", ""], ""),
    "begun and not ended": (["aS", "TO", "Xb"], "STOP", ["a", "", "STOXb"], ""),
    "begun twice": (["aab", "aa", "bc"], "aabc", ["", "aab", ""], ""),
    "begun at the end": (["x\n"], "\n\n", ["x"], "\n"),
    "of one character": (["x", "y\nz"], "\n", ["x", "y"], ""),
    "none": (["x", "y"], None, ["x", "y"], ""),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_text_ends_before_the_stop(case):
    given, stop, expected, rest = STOPS[case]
    until = StopText(stop)
    assert [until.add(piece) for piece in given] == expected
    assert until.reached == (stop is not None and stop in "".join(given))
    assert until.end() == rest


def test_a_stop_is_a_text():
    with pytest.raises(InputError, match="stop=''"):
        StopText("")
