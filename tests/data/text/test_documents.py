"""Documents from everywhere: what is read, how it is divided, and what is refused."""

import pandas
import pytest
from datasets import Dataset, DatasetDict

from lit_tbptt.data.text.documents import InputError, load_documents, standard_library, texts

ROWS = {"train": ["one two\nthree\n", "four", "five"], "validation": ["six\n"], "test": ["seven", ""]}


def found(splits):
    return {split: [text for some in texts(documents) for text in some] for split, documents in splits.items()}


def write(folder, kind):
    """Writes ROWS under `folder` the way `kind` says and returns what to give as data.path."""
    for split, rows in ROWS.items():
        table = Dataset.from_dict({"text": rows, "number": range(len(rows))})
        if kind == "parquet":
            table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        elif kind == "json lines":
            table.to_json(folder / f"{split}.jsonl")
    if kind == "saved":
        DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in ROWS.items()}).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "json lines", "saved"])
def test_every_kind_of_dataset_gives_the_same_documents(tmp_path, kind):
    assert found(load_documents(write(tmp_path, kind))) == ROWS


def test_dataset_objects_are_taken_as_they_are():
    given = DatasetDict({split: Dataset.from_dict({"body": rows}) for split, rows in ROWS.items()})
    assert found(load_documents(given, text_column="body")) == ROWS


@pytest.mark.parametrize("kind", ["list", "tuple", "pandas", "pandas series", "pandas with an index", "polars"])
def test_texts_in_memory_are_taken_as_they_are(kind):
    def of(rows):
        match kind:
            case "polars":
                return pytest.importorskip("polars").DataFrame({"body": rows})
            case "pandas series":
                return pandas.Series(rows)
            case "pandas" | "pandas with an index":
                frame = pandas.DataFrame({"number": range(len(rows)), "body": rows})
                return frame if kind == "pandas" else frame.set_index("number")
        return tuple(rows) if kind == "tuple" else rows

    given = {split: of(rows) for split, rows in ROWS.items()}
    assert found(load_documents(given, text_column="body")) == ROWS
    assert found(load_documents(of(ROWS["train"]), text_column="body", val_fraction=0)) == {"train": ROWS["train"]}


def test_texts_in_memory_that_are_none_are_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.path has the type list, and its element 2 is None: must be a text"):
        load_documents(["a", "b", None])
    with pytest.raises(
        InputError, match=r"data\.path has the type int: must be a name, .* a list of texts, a data frame"
    ):
        load_documents(7)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match=r"the first is the name of a file, .*a\.txt.*load_options"):
        load_documents([str(tmp_path / "a.txt")])
    with pytest.raises(InputError, match=r"this is no path; texts from Python are given in a list, \[text\]"):
        load_documents("To be, or not to be,\nthat is the question")
    with pytest.raises(InputError, match=r"data\.path='x{40}'\.\.\.: this is no path"):
        load_documents("x" * 999)
    assert found(load_documents(["x" * 999], val_fraction=0)) == {"train": ["x" * 999]}
    with pytest.raises(InputError, match="row 0 of the corpus: its column 'text' holds None"):
        load_documents(Dataset.from_dict({"text": [None]}))
    with pytest.raises(InputError, match=r"data\.text_column='text': .* it has body"):
        load_documents(pandas.DataFrame({"body": ["a"]}))


def test_nothing_is_held_out_of_a_stream(words_folder):
    given = Dataset.from_dict({"text": ["a", "b"]})
    assert set(load_documents(given, streaming=True)) == {"train"}
    assert set(load_documents(given, streaming=True, val_fraction=0)) == {"train"}
    with pytest.raises(
        InputError, match=r"data\.val_fraction=0\.05 with data\.streaming=True, and no validation split"
    ):
        load_documents(given, streaming=True, val_fraction=0.05)
    named = load_documents(str(words_folder), streaming=True, val_fraction=0.05)
    assert set(named) == {"train", "validation", "test"}


def test_a_folder_of_text_files_is_found_by_their_names_and_a_file_is_a_document(words_folder):
    splits = found(load_documents(str(words_folder)))
    assert splits == {
        split: [(words_folder / f"{name}.txt").read_text()]
        for split, name in (("train", "train"), ("validation", "valid"), ("test", "test"))
    }


def test_a_text_file_can_be_read_line_by_line(words_folder):
    splits = load_documents(str(words_folder), load_options={"sample_by": "line"})
    assert found(splits)["test"] == (words_folder / "test.txt").read_text().splitlines()


@pytest.mark.parametrize("name", ["book.txt", "book", "book.py"])
def test_one_text_file_is_cut_at_a_character(tmp_path, name):
    (tmp_path / name).write_text("0123456789" * 13)
    splits = found(load_documents(str(tmp_path / name), val_fraction=0.1))
    assert splits == {"train": ["0123456789" * 11 + "0123456"], "validation": ["789" + "0123456789"]}


def test_a_dataset_without_validation_gives_its_last_documents():
    given = Dataset.from_dict({"text": [f"d{i}" for i in range(11)]})
    splits = found(load_documents(given, val_fraction=0.2))
    assert splits == {"train": [f"d{i}" for i in range(9)], "validation": ["d9", "d10"]}
    assert set(load_documents(given, val_fraction=0)) == {"train"}


def test_a_share_that_is_not_held_out_is_said(words_folder, caplog):
    load_documents(str(words_folder))
    assert not caplog.messages
    load_documents(str(words_folder), val_fraction=0.3)
    assert caplog.messages == ["data.val_fraction=0.3 is not used: the corpus has a validation split of its own"]


def test_splits_of_other_names_are_said(caplog):
    texts = [f"d{i}" for i in range(11)]
    splits = found(load_documents({"train": texts, "dev": ["a"], "testing": ["b"]}))
    assert splits == {"train": texts, "validation": ["a"]}
    assert caplog.messages == [
        "data: splits that are not used: testing; known names are train, validation, valid, val, dev, test"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ab",
            "it has 2 characters, too few to hold out data.val_fraction=0.05 of them for validation; give more",
        ),
        ("", "it is empty; text to train on is needed"),
        (" \n\n", "it has no text, only 3 blank characters; text to train on is needed"),
    ],
)
def test_a_file_with_hardly_any_text_is_refused_with_what_is_there(text, message, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=rf"^data\.path='.*a\.txt': {message}"):
        load_documents(str(tmp_path / "a.txt"))


def test_a_configuration_is_refused_where_the_corpus_has_none(words_folder):
    message = r"^data\.name='tiny' with {}: it names a configuration .* leave it out, or set it to null"
    for source, shown in (
        (str(words_folder), r"data\.path='.*'"),
        (str(words_folder / "train.txt"), r"data\.path='.*train\.txt'"),
        ("text", r"data\.path='text'"),
        (None, "the default corpus"),
        (["a", "b"], "data in memory"),
    ):
        with pytest.raises(InputError, match=message.format(shown)):
            load_documents(source, name="tiny")


def test_a_folder_whose_card_has_configurations_takes_a_name(tmp_path):
    card = "---\nconfigs:\n- config_name: tiny\n  data_files: a.txt\n- config_name: other\n  data_files: b.txt\n---\n"
    for name, text in (("README.md", card), ("a.txt", "first " * 9), ("b.txt", "second " * 9)):
        (tmp_path / name).write_text(text)
    assert found(load_documents(str(tmp_path), "tiny", val_fraction=0)) == {"train": ["first " * 9]}


def test_the_standard_library_is_divided_by_the_salt_alone():
    first, again, other = standard_library("lit_tbptt"), standard_library("lit_tbptt"), standard_library("pepper")
    assert first == again
    assert first["test"] != other["test"]
    everything = sorted(file for files in first.values() for file in files)
    assert everything == sorted(file for files in other.values() for file in files)
    assert not any("/site-packages/" in file or "/test/" in file for file in everything)
    assert 0.85 < len(first["train"]) / len(everything) < 0.95


def test_what_is_not_there_is_named(tmp_path, words_folder):
    with pytest.raises(InputError, match=r"data\.path='no-such/dataset'.*no such file or folder here"):
        load_documents("no-such/dataset")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data\.path=.*empty.*no such"):
        load_documents(str(tmp_path / "empty"))
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"data\.path=.*broken.parquet"):
        load_documents(str(tmp_path / "broken.parquet"))
    with pytest.raises(InputError, match=r"data\.text_column='body': .* it has text, number"):
        load_documents(Dataset.from_dict({"text": ["a"], "number": [1]}), text_column="body")
    with pytest.raises(InputError, match=r"data\.val_fraction=1.0"):
        load_documents(str(words_folder), val_fraction=1.0)
    with pytest.raises(InputError, match="no_such_option"):
        load_documents(str(words_folder), load_options={"no_such_option": 1})


def test_text_that_is_not_utf8_names_the_file_and_the_byte(tmp_path):
    (tmp_path / "train-a.txt").write_text("fine\n")
    (tmp_path / "train-b.txt").write_bytes(b"x" * ((1 << 20) - 1) + "é".encode() + b"..\xff..")
    with pytest.raises(InputError, match=rf"train-b\.txt: byte {(1 << 20) + 3} is not UTF-8.*encoding_errors"):
        load_documents(str(tmp_path))
    splits = load_documents(str(tmp_path), load_options={"encoding_errors": "replace"}, val_fraction=0)
    assert found(splits)["train"][1].endswith("é..\ufffd..")


def test_a_row_without_text_is_named():
    with pytest.raises(InputError, match="row 2 of its split of the corpus: its column 'body' holds None"):
        found({"train": Dataset.from_dict({"body": ["a", "b", None]})})


def test_documents_are_read_some_at_a_time():
    rows = ["x" * 3_000_000] * 5
    assert [len(some) for some in texts(Dataset.from_dict({"text": rows}))] == [1] * 5
