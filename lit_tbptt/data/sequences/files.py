"""Datasets of sequences by a path: a file, a folder, what `save_to_disk` wrote, or a name on the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.packaged_modules import _EXTENSION_TO_MODULE

from lit_tbptt.data.text.documents import SPLITS
from lit_tbptt.data.text.files import local_files
from lit_tbptt.data.text.reading import read_dataset
from lit_tbptt.errors import InputError

# Builders of files whose columns can be lists, or of csv, in which a column is found not to be one.
_FORMATS = ("parquet", "json", "arrow", "csv")


def _is_local(path: str) -> bool:
    """Returns whether a path cannot be a dataset of the Hub: these are asked for several times when there is none."""
    first, *rest = Path(path).parts or ("",)
    if "://" in path:
        return False
    return path.startswith(("/", ".", "~")) or len(rest) > 1 or (len(rest) == 1 and Path(first).is_dir())


def load_sequences(path: str, name: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the splits of a dataset.

    Args:
        path: What `load_dataset` takes; a file in parquet, Arrow or JSON lines; or a folder that `save_to_disk` wrote.
        name: The configuration.
        options: Further arguments of `load_dataset`.

    Returns:
        The datasets by split. `valid`, `val` and `dev` are named validation.

    Raises:
        InputError: There is no such dataset, or no way to read it.
    """
    local = Path(path).expanduser()
    if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
        if name is not None or options:
            raise InputError(
                f"data.path={path!r} was written by save_to_disk: leave out data.name={name!r} and "
                f"data.load_options={options}"
            )
        loaded = datasets.load_from_disk(local)
    elif local.is_file():
        builders = [_EXTENSION_TO_MODULE.get(suffix.lower(), ("",))[0] for suffix in local.suffixes[-2:]]
        builder = next((name for name in builders if name in _FORMATS), None)
        if builder is None:
            raise InputError(
                f"data.path={path!r}: a file must be parquet, Arrow or JSON lines, with a sequence in a row; from "
                "other files, make a dataset in Python and give it as train, val and test"
            )
        chosen, files = local_files(local, None) or (builder, {"data_files": str(local)})
        loaded = read_dataset(chosen, name, options, path, files)
    elif _is_local(path) and not local.exists():
        raise InputError(f"data.path={path!r}: there is no such file or folder")
    else:
        loaded = read_dataset(str(local) if local.is_dir() else path, name, options, path)
    splits = {"train": loaded} if isinstance(loaded, Dataset) or not isinstance(loaded, dict) else dict(loaded)
    for split, others in SPLITS.items():
        for other in others:
            if split not in splits and other in splits:
                splits[split] = splits.pop(other)
    return splits
