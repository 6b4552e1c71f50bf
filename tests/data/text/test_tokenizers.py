"""Tokenizers: ids there and back, descriptions, and what is refused."""

import json

import pytest
import tokenizers as hf
from tokenizers import models, pre_tokenizers, trainers

from lit_tbptt.data.text.tokenizer_choice import from_description, from_object, make_tokenizer
from lit_tbptt.data.text.tokenizers import ByteTokenizer
from lit_tbptt.errors import InputError

TRAIN = ["the cat saw the dog\n\nthe end\n", "a cat"]


def ids(tokenizer, *texts):
    return [document.tolist() for document in tokenizer.encode_documents(texts)]


@pytest.fixture
def bpe_file(tmp_path):
    library = hf.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = hf.decoders.ByteLevel()
    library.train_from_iterator(
        TRAIN * 5,
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
    )
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_without_a_name_is_not_the_working_directorys():
    with pytest.raises(InputError, match=r"^data\.tokenizer='': names nothing"):
        make_tokenizer("", [])


def test_bytes():
    tokenizer = make_tokenizer("byte", [])
    assert ids(tokenizer, "aé\n", "") == [[97, 195, 169, 10, 256], []]
    assert tokenizer.decode([97, 195, 169, 256, 255]) == "aé\n\ufffd"
    assert tokenizer.vocabulary_size == 257


def test_characters():
    tokenizer = make_tokenizer("char", ["hello\n", "é"])
    assert ids(tokenizer, "hé!", "") == [[4, 7, 1, 0], []]
    assert tokenizer.vocabulary_size == 2 + len("\nehloé")
    assert tokenizer.decode([4, 7, 0, 1]) == "hé\n\ufffd"


def test_words_have_one_eos_after_every_line():
    tokenizer = make_tokenizer("word", TRAIN)
    vocabulary = {word: tokenizer.library.token_to_id(word) for word in ("<eos>", "<unk>", "the", "cat")}
    assert vocabulary == {"<eos>": 0, "<unk>": 1, "the": 2, "cat": 3}
    assert ids(tokenizer, "the cat\n\nthe fox\n", "the", "", "\n") == [[2, 3, 0, 0, 2, 1, 0], [2, 0], [0], [0]]
    assert tokenizer.vocabulary_size == 8
    assert tokenizer.decode([2, 3, 0, 2]) == "the cat\nthe"


def test_the_word_vocabulary_can_be_limited_to_the_most_frequent():
    tokenizer = make_tokenizer("word", TRAIN, 4)
    assert tokenizer.vocabulary_size == 4
    assert ids(tokenizer, "the cat saw") == [[2, 3, 1, 0]]


def test_an_unknown_mark_in_the_text_is_the_vocabularys_own():
    tokenizer = make_tokenizer("word", ["the <unk> said\n"])
    assert tokenizer.vocabulary_size == 4
    assert ids(tokenizer, "<unk> he") == [[1, 1, 0]]


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_hugging_face_tokenizer_from_disk(bpe_file, of):
    tokenizer = make_tokenizer(str(bpe_file if of == "file" else bpe_file.parent), [])
    (document,) = ids(tokenizer, "the cat")
    assert document[-1] == tokenizer.eos == tokenizer.library.token_to_id("<eos>")
    assert tokenizer.decode(document[:-1]) == "the cat"
    assert tokenizer.vocabulary_size == tokenizer.eos + 1


def test_a_tokenizers_own_end_of_text_is_used(bpe_file):
    library = hf.Tokenizer.from_file(str(bpe_file))
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(bpe_file))
    tokenizer = make_tokenizer(str(bpe_file), [])
    assert tokenizer.eos == library.token_to_id("<|endoftext|>")
    assert tokenizer.vocabulary_size == library.get_vocab_size()


def test_a_tokenizer_object_is_taken_and_left_as_it_is(bpe_file):
    library = hf.Tokenizer.from_file(str(bpe_file))
    before = library.to_str()
    tokenizer = from_object(library)
    assert library.to_str() == before
    assert tokenizer.name == "BPE"
    assert ids(tokenizer, "the cat") == ids(make_tokenizer(str(bpe_file), []), "the cat")

    class Fast:
        backend_tokenizer = library

    assert ids(from_object(Fast()), "the cat") == ids(tokenizer, "the cat")
    assert isinstance(from_object(ByteTokenizer()), ByteTokenizer)
    with pytest.raises(
        InputError, match=r"data\.tokenizer has the type function: must be one of byte, char, word, bpe, a file"
    ):
        from_object(lambda text: text.split())


def test_a_tokenizer_that_cuts_texts_off_does_not_cut_documents(bpe_file):
    library = hf.Tokenizer.from_file(str(bpe_file))
    expected = ids(make_tokenizer(str(bpe_file), []), "the cat saw the dog", "the")
    library.enable_truncation(3)
    library.enable_padding(length=4)
    library.save(str(bpe_file))
    assert ids(make_tokenizer(str(bpe_file), []), "the cat saw the dog", "the") == expected
    assert library.truncation is not None
    assert ids(from_object(library), "the cat saw the dog", "the") == expected


@pytest.mark.parametrize(
    ("model", "unknown"),
    [
        (models.WordLevel({"a": 0, "[UNK]": 7}, "[UNK]"), 7),
        (models.Unigram([("a", -1.0), ("?", -2.0)], 1), 1),
        (models.BPE({"a": 0, "b": 1, "?": 2}, [], unk_token="?"), 2),
        (models.BPE({"a": 0, "b": 1}, []), None),
    ],
)
def test_the_unknown_token_of_a_library_tokenizer(model, unknown):
    tokenizer = from_object(hf.Tokenizer(model))
    assert tokenizer.unknown == unknown
    texts = ["a", "ba"]
    documents = tokenizer.encode_documents(texts)
    assert tokenizer.num_unknown(texts, documents) == sum(ids.tolist().count(unknown) for ids in documents)


@pytest.mark.parametrize("name", ["byte", "char", "word", "bpe", "library"])
def test_a_description_makes_the_same_tokenizer(name, bpe_file):
    tokenizer = make_tokenizer(str(bpe_file) if name == "library" else name, TRAIN)
    again = from_description(json.loads(json.dumps(tokenizer.describe())))
    texts = ["the cat\nsat", "", "é the end"]
    assert ids(again, *texts) == ids(tokenizer, *texts)
    assert (again.eos, again.vocabulary_size, type(again)) == (
        tokenizer.eos,
        tokenizer.vocabulary_size,
        type(tokenizer),
    )


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for name in (str(tmp_path), str(tmp_path / "tokenizer.json"), str(tmp_path / "missing.json"), "no-such/tokenizer"):
        with pytest.raises(InputError, match=r"data\.tokenizer=.*not one of byte, char, word, bpe"):
            make_tokenizer(name, [])


def test_a_misspelt_name_is_not_looked_for_on_the_hub():
    with pytest.raises(InputError, match=r"data\.tokenizer='wrod': did you mean word"):
        make_tokenizer("wrod", [])


@pytest.mark.parametrize(("name", "limit"), [("byte", 100), ("word", 1), ("bpe", 256)])
def test_a_limit_that_makes_no_sense_is_refused(name, limit):
    with pytest.raises(InputError, match=f"data.vocabulary_limit={limit}"):
        make_tokenizer(name, TRAIN, limit)


def test_a_class_of_the_users_own_is_not_in_a_checkpoint():
    class Mine(ByteTokenizer):
        name = "mine"

    with pytest.raises(InputError, match="the checkpoint's tokenizer, 'mine', is of a class of your own"):
        from_description(Mine().describe())
