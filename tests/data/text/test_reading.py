"""What `load_dataset` is given that is wrong is said by the names of our settings."""

import datasets
import pytest

from lit_tbptt.data.text.corpus import open_corpus
from lit_tbptt.data.text.documents import load_documents
from lit_tbptt.data.text.reading import cache_named
from lit_tbptt.data.text.tokenizers import ByteTokenizer
from lit_tbptt.errors import InputError

# Load options for a text file, and what the message says.
REFUSED = {
    "a misspelt option": ({"encodng": "utf-8"}, r"encodng: there is no such option; did you mean encoding\?"),
    "a misspelt data_files": ({"data_fils": "a"}, r"data_fils: .* did you mean data_files\?"),
    "no option": ({"xyzzy": 1}, "xyzzy: there is no such option; there are .*encoding, .*sample_by"),
    "an encoding": ({"encoding": "utf-9"}, "encoding='utf-9': unknown encoding: utf-9"),
    "what to do with errors": ({"encoding_errors": "skip"}, "encoding_errors='skip': .*there are strict, replace, "),
    "a document": ({"sample_by": "sentence"}, "sample_by='sentence': must be one of document, paragraph, line"),
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\n" * 20)
    return str(tmp_path / "a.txt")


@pytest.mark.parametrize("case", REFUSED)
def test_a_load_option_that_is_wrong_is_named(case, file):
    options, message = REFUSED[case]
    with pytest.raises(InputError, match=rf"^data\.load_options\.{message}"):
        load_documents(file, load_options=options)


def test_other_files_than_the_one_that_is_given_are_refused(file):
    with pytest.raises(InputError, match=r"^data\.path='.*a\.txt' is a file, and data\.load_options names others"):
        load_documents(file, load_options={"data_files": "b.txt"})


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"^data\.load_options\.data_files='.*no\.txt': no such file"):
        load_documents("text", load_options={"data_files": str(tmp_path / "no.txt")})


def test_options_of_load_dataset_itself_are_passed_on(file):
    found = load_documents(
        file, load_options={"split": "train[:3]", "sample_by": "line", "num_proc": 1}, val_fraction=0
    )
    assert found["train"][:] == {"text": ["one", "", "two"]}


def test_a_cache_that_cannot_be_written_is_named_and_not_the_data(tmp_path, file, monkeypatch):
    (tmp_path / "taken").write_text("")
    cache = tmp_path / "taken" / "cache"
    with pytest.raises(InputError, match=rf"^data\.cache_dir='{cache}': cannot be used \(.*Not a directory\)"):
        load_documents(file, load_options={"cache_dir": str(cache)})
    documents = load_documents(file)
    with pytest.raises(InputError, match=rf"^data\.cache_dir='{cache}': cannot be used"):
        open_corpus(documents, ByteTokenizer(), None, cache / "lit_tbptt", streaming=False)
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(cache))
    message = rf"^the cache of Hugging Face, {cache}, .* set the environment variable HF_HOME"
    with pytest.raises(InputError, match=message):
        open_corpus(documents, ByteTokenizer(), None, cache / "lit_tbptt", streaming=False)


def test_other_errors_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError), cache_named(tmp_path / "cache"):
        (tmp_path / "elsewhere.txt").read_text()
    full = OSError(28, "No space left on device", str(tmp_path / "cache" / "ids.bin"))
    with pytest.raises(OSError, match="No space left"), cache_named(tmp_path / "cache"):
        raise full
