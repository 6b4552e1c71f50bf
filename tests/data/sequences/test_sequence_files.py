"""A path as a dataset of sequences: files, folders, what save_to_disk wrote."""

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars

from lit_tbptt import InputError, SequenceLanesDataModule

ROWS = {"x": [[1.0, 2.0, 3.0], [4.0, 5.0]], "y": [[7, 8, 9], [10, 11]]}
OTHERS = {"x": [[6.0]], "y": [[12]]}
WRITERS = {
    "data.parquet": lambda rows, path: rows.to_parquet(path),
    "data.jsonl": lambda rows, path: rows.to_json(path),
    "data.jsonl.gz": lambda rows, path: rows.to_json(path, compression="gzip"),
    "data.JSON": lambda rows, path: rows.to_json(path),
    "saved": lambda rows, path: rows.save_to_disk(path),
    "splits": lambda rows, path: DatasetDict(train=rows, valid=Dataset.from_dict(OTHERS)).save_to_disk(path),
}


def data(path, tmp_path, **options):
    cache = {} if path.is_dir() else {"load_options": {"cache_dir": str(tmp_path / "cache")}}
    return SequenceLanesDataModule(path=path, inputs="x", targets="y", num_lanes=2, k1=3, **cache | options)


def values(lanes):
    return [window.inputs[window.mask_or_ones()].tolist() for batch in lanes for window in batch.windows]


@pytest.mark.parametrize("name", WRITERS)
def test_files_and_saved_folders_are_read(name, tmp_path, capfd):
    disable_progress_bars()
    WRITERS[name](Dataset.from_dict(ROWS), tmp_path / name)
    made = data(tmp_path / name, tmp_path, shuffle=False)
    made.setup("fit")
    assert values(made.train_dataloader()) == [[1.0, 2.0, 3.0, 4.0, 5.0]]
    assert values(made.val_dataloader()) == ([[6.0]] if name == "splits" else [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.csv", r"data \(train\): the column 'x' has the type .*string.*: it has no time axis; a row is a whole"),
        ("a.npz", r"data.path='.*a.npz': a file must be parquet, Arrow or JSON lines, with a sequence in a row"),
        ("a.txt", r"data.path='.*a.txt': a file must be parquet"),
        ("a.parquet", r"data.path=.*a.parquet.*: Parquet magic bytes not found"),
        ("a", r"data.path='.*a': a file must be parquet"),
    ],
)
def test_other_files_are_refused_with_what_to_do(name, message, tmp_path):
    (tmp_path / name).write_text('x,y\n"[1, 2]","[3, 4]"\n')
    with pytest.raises(InputError, match=message):
        data(tmp_path / name, tmp_path).setup("fit")


@pytest.mark.parametrize("path", ["{}/none", "./none", "../none.parquet", "~/none/at/all", "a/b/c"])
def test_a_missing_path_is_not_looked_up_on_the_hub(path, tmp_path):
    path = path.format(tmp_path)
    with pytest.raises(InputError, match=f"data.path='{path}': there is no such file or folder$"):
        SequenceLanesDataModule(path=path, inputs="x").setup("fit")


def test_a_saved_dataset_has_no_options(tmp_path):
    Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"written by save_to_disk: leave out data.name='a' and data.load_options={}"):
        data(tmp_path / "saved", tmp_path, name="a").setup("fit")


def test_a_stream_is_refused():
    rows = Dataset.from_dict(ROWS).to_iterable_dataset()
    with pytest.raises(InputError, match="the dataset is of the type IterableDataset: it must have len and an index"):
        SequenceLanesDataModule(rows, inputs="x").setup("fit")
