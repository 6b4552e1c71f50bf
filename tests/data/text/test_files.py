"""Local files: which of a folder are read, as which splits, in which encoding, and when they are read again."""

import gzip
import os
import zipfile

import pytest

from lit_tbptt.data.text.documents import InputError, load_documents, texts
from lit_tbptt.data.text.files import local_files, split_by_name

CHINESE = "一二三四五六七。八九十百千万。\n"


def found(path, **options):
    splits = load_documents(path, **options)
    return {split: [text for some in texts(documents) for text in some] for split, documents in splits.items()}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train.txt valid.txt test.txt", "train=train.txt validation=valid.txt test=test.txt"),
        ("wiki.train.tokens wiki.test.tokens", "train=wiki.train.tokens test=wiki.test.tokens"),
        ("Train-1 Train-2 dev", "train=Train-1,Train-2 validation=dev"),
        ("train/a train/b test/c.md", "train=train/a,train/b test=test/c.md"),
        ("data/train-00000-of-00002.txt data/val-00000-of-00001.txt README", "train=0 validation=1"),
        ("my-test-book.txt alice.md moby", "train=alice.md,moby,my-test-book.txt"),
        ("a b valid.txt latest.txt", "train=a,b,latest.txt validation=valid.txt"),
        ("a b my-valid-reasons.txt test.txt", "train=a,b,my-valid-reasons.txt test=test.txt"),
        ("train.txt notes.txt", "train=train.txt"),
        ("my-test-book.txt my-eval-book.txt", "train=my-eval-book.txt,my-test-book.txt"),
        ("ptb.test.txt ptb.valid.txt", "validation=ptb.valid.txt test=ptb.test.txt"),
        ("contest.txt training.txt trainer.txt", "train=training.txt"),
    ],
)
def test_names_say_splits_only_where_they_must(names, splits):
    names = names.split()
    expected = dict(part.split("=") for part in splits.split())
    expected = {
        split: [names[int(n)] if n.isdigit() else n for n in group.split(",")] for split, group in expected.items()
    }
    assert split_by_name(names) == expected


def test_a_folder_of_any_text_files_is_text(tmp_path, caplog):
    folder = tmp_path / "notes"
    for name in ("a.md", "deep/b.py", "LICENSE", "d.rst.gz", "e [1].toml", "__pycache__/x", ".hidden", "README.md"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(b"packed") if name == "d.rst.gz" else f"{name}\n".encode())
    expected = ["LICENSE\n", "a.md\n", "deep/b.py\n", "e [1].toml\n"]
    assert found(folder, val_fraction=0) == {"train": expected}
    assert "4 of its files are read, as text, and 1 left out: 1 .gz (d.rst.gz)" in caplog.text
    streamed = load_documents(folder, streaming=True)
    assert [row["text"] for row in streamed["train"]] == expected


def test_what_a_mixed_folder_leaves_out_is_said(tmp_path, caplog):
    for name in ("one.md", "two.md"):
        (tmp_path / name).write_text(f"{name} is text\n" * 100)
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0" + bytes(9999))
    (tmp_path / "core").write_bytes(b"\x7fELF\0\0\1")
    assert len(found(str(tmp_path), val_fraction=0)["train"]) == 2
    assert "2 of its files are read, as text, and 3 left out" in caplog.text
    assert all(f"1 {kind}" in caplog.text for kind in (".json", ".png", "without extension"))
    assert "(core, package.json, photo.png)" in caplog.text
    caplog.clear()
    # Rows that are more than the texts beside them are the corpus.
    (tmp_path / "rows.csv").write_text("text\n" + ("row" * 99 + "\n") * 11)
    assert found(str(tmp_path), val_fraction=0) == {"train": ["row" * 99] * 11}
    assert "1 of its files are read, as csv, and 5 left out: 2 .md" in caplog.text


def test_a_test_book_among_others_is_read_with_them(tmp_path, caplog):
    for name in ("alice", "my-test-book", "moby"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert found(str(tmp_path)) == {"train": ["alice", "moby"], "validation": ["my-test-book"]}
    assert not caplog.text
    (tmp_path / "train.txt").write_text("named")
    assert found(str(tmp_path), val_fraction=0) == {"train": ["named"], "test": ["my-test-book"]}
    assert "2 of its files are read, as text, and 2 left out: 2 .txt (alice.txt, moby.txt)" in caplog.text


def test_a_card_that_names_the_files_is_heard(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: b.txt\n---\n"
    (tmp_path / "README.md").write_text(card)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert found(str(tmp_path), val_fraction=0) == {"train": ["b"]}


@pytest.mark.parametrize("name", ["book [1].txt", "book*.csv", "notes.md"])
def test_a_file_of_any_name_is_read(tmp_path, name):
    (tmp_path / "book1.txt").write_text("another one")
    (tmp_path / name).write_text("text\nrow\n")
    assert found(tmp_path / name, val_fraction=0) == {"train": ["row"] if name.endswith("csv") else ["text\nrow\n"]}


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    (tmp_path / name).write_text("\ufeffé is text", encoding="utf-8")
    for path in (tmp_path, tmp_path / name):
        assert found(path, val_fraction=0) == {"train": ["é is text"]}
        assert next(iter(load_documents(path, streaming=True)["train"])) == {"text": "é is text"}


@pytest.mark.parametrize(
    ("encoding", "advised"),
    [("utf-16", "to utf-16 if"), ("utf-16-le", "to utf-16-le"), ("utf-16-be", "to utf-16-be")],
)
@pytest.mark.parametrize("name", ["a.txt", "a"])
def test_utf_16_is_recognized(tmp_path, name, encoding, advised):
    (tmp_path / name).write_text("plain letters\n" * 7, encoding=encoding)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            InputError, match=rf"{name}: this looks like text in UTF-16; .*load_options\.encoding {advised}"
        ):
            load_documents(path)
        named = found(path, val_fraction=0, load_options={"encoding": encoding})
        assert named == {"train": ["plain letters\n" * 7]}


@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_gb18030_is_recognized(tmp_path, name):
    (tmp_path / name).write_text(CHINESE * 9, encoding="gb18030")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            InputError, match=rf"{name}: byte 2 is not UTF-8 text .*can be read as GB18030; .*\.encoding"
        ):
            load_documents(path)
        assert found(path, val_fraction=0, load_options={"encoding": "gb18030"}) == {"train": [CHINESE * 9]}


def test_text_that_is_not_in_the_encoding_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InputError, match=r"a\.txt: byte 3 is not UTF-8 text \([^)]*\); convert it"):
        load_documents(tmp_path)
    with pytest.raises(InputError, match=r"a\.txt: byte 3 is not ASCII text"):
        load_documents(tmp_path, load_options={"encoding": "ascii"})
    assert found(tmp_path, val_fraction=0, load_options={"encoding": "latin-1"}) == {"train": ["café au lait"]}


def test_a_folder_without_text_is_refused(tmp_path):
    for name in ("core", "a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x7fELF\0\0\1")
    message = r"none of its 3 files holds text \(2 \.png, 1 without extension\); .*load_options\.encoding"
    with pytest.raises(InputError, match=message):
        load_documents(tmp_path)


@pytest.mark.parametrize("alone", [True, False])
def test_a_file_that_was_changed_is_read_again_whatever_its_date_says(tmp_path, alone):
    folder = tmp_path / "texts"
    folder.mkdir()
    file = folder / "a.txt"
    for text in ("first", "again"):
        file.write_text(text)
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert found(file if alone else folder, val_fraction=0) == {"train": [text]}


def test_a_document_of_an_office_program_is_no_text(tmp_path):
    with zipfile.ZipFile(tmp_path / "essay.docx", "w") as archive:
        archive.writestr("word/document.xml", "<w:t>one two</w:t>" * 99)
    with pytest.raises(InputError, match=r"essay\.docx': a document or an archive in the format of zip, not text"):
        local_files(tmp_path / "essay.docx", None)
    (tmp_path / "essay.docx").rename(tmp_path / "essay.zip")
    assert local_files(tmp_path / "essay.zip", None) is None


def test_a_path_that_is_empty_is_not_the_working_directory():
    with pytest.raises(InputError, match=r"^data\.path='': names nothing"):
        load_documents("")
