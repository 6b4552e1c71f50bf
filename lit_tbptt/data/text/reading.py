"""`load_dataset` of Hugging Face, and what it says when it is given something wrong, by the names of our settings."""

import codecs
import dataclasses
import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, IterableDatasetDict
from huggingface_hub.errors import HFValidationError

from lit_tbptt.data.text.files import TEXT_DEFAULTS, undecodable
from lit_tbptt.data.text.network import refuse_lossy_retries, storage_options
from lit_tbptt.errors import InputError

# How a text file may be divided into documents.
_DOCUMENTS = ("document", "paragraph", "line")
# A disk that is full is no mistake in a setting.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_dataset(
    path: str, name: str | None, given: dict[str, Any], shown: str, files: Mapping[str, Any] | None = None
) -> DatasetDict | IterableDatasetDict:
    """Calls `load_dataset`; a text file is one document, line breaks and all, unless the user asks for lines.

    Args:
        path: The dataset, or the format of files: `text`, `json`, `csv`, `parquet`.
        name: The dataset's configuration.
        given: Further arguments, as the user gave them.
        shown: What messages call the corpus.
        files: Further arguments that the user did not give.

    Raises:
        InputError: An argument is wrong, or the corpus cannot be read.
    """
    _check(given)
    builder, options = None, {**(files or {}), **given}
    try:
        with cache_named(Path(given.get("cache_dir") or datasets.config.HF_CACHE_HOME)):
            builder = _builder(path, name, options)
            if hasattr(builder.config, "sample_by"):
                options = TEXT_DEFAULTS | options
            if options.get("streaming"):
                if hasattr(builder.config, "sample_by"):
                    refuse_lossy_retries()
                options = options | {"storage_options": storage_options() | (options.get("storage_options") or {})}
            return datasets.load_dataset(path, name, **options)
    except InputError:
        raise
    except datasets.exceptions.DataFilesNotFoundError as error:
        raise InputError(
            f"data.path={shown!r}: there are no data files that are known ({error}); text that is not UTF-8 needs "
            "data.load_options.encoding"
        ) from error
    except (FileNotFoundError, ConnectionError, HFValidationError) as error:
        if "data_files" in given and "Unable to find" in str(error):
            raise InputError(f"data.load_options.data_files={given['data_files']!r}: no such file ({error})") from error
        raise InputError(
            f"data.path={shown!r}: no such file or folder here, and no such dataset on the Hugging Face Hub, or the "
            f"Hub cannot be reached ({error})"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeDecodeError) and builder is not None:
            encoding = options.get("encoding", "utf-8")
            raise InputError(undecodable(builder.config.data_files, encoding, cause)) from error
        if isinstance(cause, OSError) and cause.errno in _FULL:
            raise cause from error
        raise InputError(f"data.path={shown!r}: cannot be read ({cause})") from error
    except (TypeError, ValueError) as error:
        _check_names(path, name, options, given)
        raise InputError(f"data.path={shown!r}, data.name={name!r}, data.load_options={given}: {error}") from error


def _builder(path: str, name: str | None, options: Mapping[str, Any]) -> datasets.DatasetBuilder:
    later = _arguments(datasets.load_dataset) - _arguments(datasets.load_dataset_builder)
    return datasets.load_dataset_builder(path, name, **{key: options[key] for key in options if key not in later})


def _arguments(function: Any) -> set[str]:
    return {each.name for each in signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD}


def _check(given: Mapping[str, Any]) -> None:
    """Raises InputError for values that `datasets` would take, and fail on or ignore later."""
    for key, look_up in (("encoding", codecs.lookup), ("encoding_errors", codecs.lookup_error)):
        if given.get(key) is not None:
            try:
                look_up(given[key])
            except (LookupError, TypeError) as error:
                kinds = "" if key == "encoding" else "; there are strict, replace, ignore, and others of Python"
                raise InputError(f"data.load_options.{key}={given[key]!r}: {error}{kinds}") from error
    documents = given.get("sample_by", _DOCUMENTS[0])
    if documents not in _DOCUMENTS:
        raise InputError(f"data.load_options.sample_by={documents!r}: must be one of {', '.join(_DOCUMENTS)}")


def _check_names(path: str, name: str | None, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises InputError for a load option that there is not."""
    later = _arguments(datasets.load_dataset)
    try:
        config = _builder(path, name, {key: value for key, value in options.items() if key in later}).config
    except Exception:  # it is not the names alone
        return
    fields = {field.name for field in dataclasses.fields(config)} - {"name", "version", "description"}
    known = sorted(fields | later - {"path", "name", "streaming"})
    for key in sorted(given.keys() - set(known) - {"streaming"}):
        close = get_close_matches(key, known, n=1)
        meant = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
        raise InputError(f"data.load_options.{key}: there is no such option{meant}")


@contextmanager
def cache_named(cache: Path) -> Iterator[None]:
    """Names the setting in errors about the folder in which datasets and token files are kept.

    Args:
        cache: The folder: `data.cache_dir`, or the cache of Hugging Face.

    Raises:
        InputError: The folder cannot be used.
    """
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else None
        in_cache = place is not None and (Path(place) in (cache, *cache.parents) or cache in Path(place).parents)
        if not in_cache or error.errno in _FULL:
            raise
        ours = cache == Path(datasets.config.HF_CACHE_HOME)
        what = f"the cache of Hugging Face, {cache}," if ours else f"data.cache_dir={str(cache)!r}:"
        advice = "the environment variable HF_HOME, or data.cache_dir," if ours else "it"
        raise InputError(
            f"{what} cannot be used ({place}: {error.strerror}); set {advice} to a folder that can be written to"
        ) from error
