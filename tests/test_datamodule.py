import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from lit_tbptt import InputError, TextLanesDataModule
from lit_tbptt.data import token_file as module
from lit_tbptt.data.documents import load_documents
from lit_tbptt.data.token_file import token_file
from lit_tbptt.data.tokenizers import ByteTokenizer, make_tokenizer


def corpus(*texts):
    return Dataset.from_dict({"text": list(texts)})


def test_a_token_file_holds_every_document_and_its_end(tmp_path):
    file = token_file(corpus("ab", "", "é"), ByteTokenizer(), tmp_path, "train")
    assert file.ids.tolist() == [97, 98, 256, 195, 169, 256]
    assert file.document_ends.tolist() == [3, 6]
    assert (file.num_documents, file.num_empty, file.num_tokens, file.num_bytes) == (2, 1, 6, 4)
    assert (file.dtype, file.bytes_per_token) == ("uint16", 4 / 6)


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
    assert not list(tmp_path.iterdir())
    assert token_file(documents, ByteTokenizer(), tmp_path, "train").num_tokens == 5_000_003


def test_the_datamodule_gives_windows_of_every_split(words_folder, tmp_path):
    data = TextLanesDataModule(
        str(words_folder),
        tokenizer="word",
        num_lanes=3,
        k1=5,
        windows_per_batch=2,
        eval_num_lanes=2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    data.setup("fit")
    lines = (words_folder / "train.txt").read_text().count("\n")
    assert data.splits["train"].num_tokens == 83 + lines
    assert [len(batch.windows) for batch in data.train_dataloader()] == [2, 2, 2, 1]
    assert [window.inputs.shape for batch in data.val_dataloader() for window in batch.windows] == [(2, 10), (2, 8)]


def test_the_word_vocabulary_is_found_again(words_folder, tmp_path):
    for _ in range(2):
        data = TextLanesDataModule(str(words_folder), tokenizer="word", cache_dir=str(tmp_path / "cache"))
        data.prepare_data()
    (file,) = (tmp_path / "cache" / "lit_tbptt").glob("*.tokenizer.json")
    assert json.loads(file.read_text())["name"] == "word"


def test_a_corpus_without_validation_has_nothing_to_validate_on():
    data = TextLanesDataModule(corpus("ab", "cd"), val_fraction=0.0, num_lanes=2)
    data.setup("fit")
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match=r"no validation split.*val_fraction above 0"):
        data.setup("validate")
    with pytest.raises(InputError, match="no test split, only train"):
        data.setup("test")


def test_data_from_python_are_not_mistaken_for_the_default_corpus():
    kept = TextLanesDataModule(corpus("ab"), tokenizer=ByteTokenizer()).hparams
    assert (kept.path, kept.tokenizer) == ("<Dataset>", "<ByteTokenizer>")
    with pytest.raises(InputError, match=r"data\.path='<Dataset>': the data were handed over from Python"):
        TextLanesDataModule(kept.path).setup("fit")


@pytest.mark.parametrize("argument", ["num_lanes", "k1", "windows_per_batch", "eval_num_lanes"])
def test_numbers_below_one_are_refused(argument):
    with pytest.raises(InputError, match=rf"data\.{argument}=0: must be 1 or more"):
        TextLanesDataModule(**{argument: 0})


def test_an_empty_corpus_and_too_few_tokens_are_refused(tmp_path):
    with pytest.raises(InputError, match="train split of the corpus is empty: 2 documents"):
        TextLanesDataModule(corpus("", ""), val_fraction=0, cache_dir=str(tmp_path)).setup("fit")
    few = DatasetDict(train=corpus("abcdef"), validation=corpus("ab"))
    with pytest.raises(InputError, match=r"data\.num_lanes=8: the train split has 7 tokens"):
        TextLanesDataModule(few, num_lanes=8).setup("fit")
    with pytest.raises(InputError, match=r"data\.eval_num_lanes=16: the validation split has 3 tokens"):
        TextLanesDataModule(few, num_lanes=7).setup("fit")


def test_ids_are_mapped_and_not_read(tmp_path):
    assert isinstance(token_file(corpus("abc"), ByteTokenizer(), tmp_path, "train").ids, np.memmap)
