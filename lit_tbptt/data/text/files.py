"""Local files as a corpus: selects which files of a folder to read, their format, splits and encoding."""

import codecs
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from datasets.data_files import FILES_TO_IGNORE, DataFilesDict, DataFilesList
from datasets.packaged_modules import _EXTENSION_TO_MODULE

from lit_tbptt.errors import InputError

logger = logging.getLogger(__name__)

# "utf-8-sig" removes a byte order mark at the start of a file.
TEXT_DEFAULTS = {"sample_by": "document", "encoding": "utf-8-sig"}
_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".lz4"}
# Read as text: `datasets` uses the extensions of the second builder for agent benchmarks.
_TEXT_BUILDERS = {"text", "harbor"}
_ZIP = b"PK\x03\x04"  # the first bytes of an archive, and of what office programs write
_HEAD = 8192  # bytes that are looked at, to know text
_Format: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]  # a builder and its options
_TEXT: _Format = ("text", ())


def local_files(path: Path, encoding: str | None) -> tuple[str, dict[str, Any]] | None:
    """Chooses how `datasets` reads a file, or the files of a folder.

    A folder may contain several formats: rows (parquet, JSON lines, CSV, ...), and text, which is every other file that
    contains text. The format with the most bytes is read, and the files left out are logged.

    Args:
        path: The file or folder.
        encoding: The encoding of text, if the user gives one.

    Returns:
        The name of a builder and options for `load_dataset`. None if `datasets` should choose: the folder's card names
        the files, or they are archives.

    Raises:
        InputError: A text file is in an encoding that has to be named, or no file of a folder holds text.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir() and not has_card(path):
        files = _visible_files(path)
    else:
        return None
    formats: dict[_Format, list[Path]] = {}
    for file in files:
        kind = _format(file, encoding)
        if kind is not None:
            formats.setdefault(kind, []).append(file)
    if not formats and path.is_file() and path.suffix != ".zip":
        if _head(path).startswith(_ZIP):
            raise InputError(
                f"data.path={str(path)!r}: a document or an archive in the format of zip, not text; save it as plain "
                "text, or let its name end in .zip if it is an archive of texts"
            )
        formats[_TEXT] = files  # what is wrong with it is found when it is read
    if not formats and files and path.is_dir() and not any(file.suffix == ".zip" for file in files):
        raise InputError(
            f"data.path={str(path)!r}: none of its {len(files)} files holds text ({_kinds(files)}); text that is not "
            "UTF-8 needs data.load_options.encoding"
        )
    if not formats:
        return None
    # Ties go to the first by name, so that the result does not depend on the order of files.
    kind = max(sorted(formats), key=lambda kind: sum(file.stat().st_size for file in formats[kind]))
    builder, more = kind[0], dict(kind[1])
    if path.is_file():
        splits = {"train": files}
    else:
        names = {file.relative_to(path).as_posix(): file for file in formats[kind]}
        splits = {split: [names[name] for name in group] for split, group in split_by_name(list(names)).items()}
        _log_left_out(path, builder, files, [file for group in splits.values() for file in group])
    if builder == "text" and encoding is None:
        for group in splits.values():
            _check_encoding(group)
    data_files = DataFilesDict({split: _stamped(group) for split, group in splits.items()})
    return builder, {"data_files": data_files, **more}


def split_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Divides files into splits by their names and the names of their folders.

    A file or folder named train, valid, validation, dev, val or test, numbered or not, belongs to that split. Longer
    names that contain such a word count if they name a train split, or if they name two splits and leave no file out:
    `wiki.test.tokens` next to `wiki.train.tokens`, but not `my-test-book.txt` among other books. If no file is named
    train, files without a split in their names become the train split; otherwise they are left out.

    Args:
        names: Paths relative to the folder, with forward slashes.

    Returns:
        The names by split, sorted.
    """
    loosely = {name: _split_of(name, whole=False) for name in names}
    strictly = {name: _split_of(name, whole=True) for name in names}
    named = set(loosely.values())
    said = loosely if "train" in named or (None not in named and len(named) > 1) else strictly
    if "train" not in said.values():
        said = {name: split or "train" for name, split in said.items()}
    groups = {split: sorted(name for name in names if said[name] == split) for split in _SPLIT_WORDS}
    return {split: group for split, group in groups.items() if group}


def _split_of(name: str, whole: bool) -> str | None:
    for part in PurePosixPath(name).parts:
        for split, words in _SPLIT_WORDS.items():
            if whole:
                found = re.fullmatch(rf"({words})([-._ ]?\d+(-of-\d+)?)?(\..*)?", part, re.IGNORECASE)
            else:
                found = re.search(rf"(^|[-._ \d])({words})($|[-._ \d])", part, re.IGNORECASE)
            if found:
                return split
    return None


def undecodable(data_files: Mapping[str, Sequence[str]] | None, encoding: str, error: UnicodeDecodeError) -> str:
    """Returns a message that names the file and the byte that cannot be decoded, and says what to do."""
    for file in (file for files in (data_files or {}).values() for file in files):
        if not Path(file).is_file():
            continue
        found = _first_error(file, encoding)
        if found is not None:
            place, reason = found
            fits = "; it can be read as GB18030" if _first_error(file, "gb18030") is None else ""
            return f"{file}: byte {place} is not {_name(encoding)} text ({reason}){fits}; {advice(encoding)}"
    return f"the corpus is not {_name(encoding)} text ({error}); {advice(encoding)}"


def advice(encoding: str = "utf-8") -> str:
    """Returns advice for text that is not in the expected encoding."""
    return (
        "convert it, set data.load_options.encoding to the one it has (such as utf-16, gb18030, shift_jis or latin-1), "
        "or set data.load_options.encoding_errors to replace or ignore"
    )


def _first_error(file: str, encoding: str) -> tuple[int, str] | None:
    decoder, read = codecs.getincrementaldecoder(encoding)(), 0
    with open(file, "rb") as stream:
        try:
            while chunk := stream.read(1 << 20):
                waiting = len(decoder.getstate()[0])
                decoder.decode(chunk)
                read += len(chunk)
            waiting = len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as found:
            return read - waiting + found.start, found.reason
    return None


def _name(encoding: str) -> str:
    return encoding.upper().removesuffix("-SIG")


def _visible_files(folder: Path) -> list[Path]:
    """Returns the files that `datasets` would also consider: no hidden files, no cards, nothing in `__pycache__`."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        found += [Path(root, name) for name in files if not name.startswith(".") and name not in FILES_TO_IGNORE]
    return sorted(file for file in found if file.is_file())


def has_card(folder: Path) -> bool:
    """Returns whether the folder says itself which files are which split."""
    card = folder / "README.md"
    if (folder / ".huggingface.yaml").exists():
        return True
    return card.is_file() and bool(re.match(r"---\n.*?^configs:", card.read_text(errors="replace"), re.S | re.M))


def _format(file: Path, encoding: str | None) -> _Format | None:
    """Returns the builder for a file and its options; None if the file is not a corpus."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in _COMPRESSED
    suffix = "".join(suffixes[-2:-1] if compressed else suffixes[-1:])
    builder, options = _EXTENSION_TO_MODULE.get(suffix, (None, {}))
    if builder in _TEXT_BUILDERS and (compressed or suffix == ".txt"):
        return _TEXT
    if builder is None or builder in _TEXT_BUILDERS:
        return _TEXT if _looks_like_text(file, encoding) else None
    return None if builder.endswith("folder") else (builder, tuple(options.items()))


def _looks_like_text(file: Path, encoding: str | None) -> bool:
    head = _head(file)
    if _utf16(head):
        return True
    return b"\0" not in head and any(_decodes(head, name) for name in (encoding or "utf-8", "gb18030"))


def _check_encoding(files: Sequence[Path]) -> None:
    for file in files:
        if file.suffix.lower() in _COMPRESSED:
            continue
        encoding = _utf16(_head(file))
        if encoding is not None:
            raise InputError(
                f"{file}: this looks like text in UTF-16; set data.load_options.encoding to {encoding} if all are, "
                "or convert it to UTF-8"
            )


def _head(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(_HEAD)


def _utf16(head: bytes) -> str | None:
    """Returns the UTF-16 encoding if the bytes begin with its mark, or if about every other byte is zero."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = head[first::2].count(0)
        if zeros > len(head) / 4 and zeros > 10 * head[1 - first :: 2].count(0) and _decodes(head, encoding):
            return encoding
    return None


def _decodes(head: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)  # a character may be cut at the end
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _stamped(files: Sequence[Path]) -> DataFilesList:
    """Lists files with stamps from which `datasets` notices that a cached file has changed.

    The modification time can be set back, as archives and `rsync -t` do, so the stamp also contains the ctime, which
    cannot.
    """
    stats = [file.stat() for file in files]
    stamps = [(f"{stat.st_mtime_ns}, {stat.st_ctime_ns}, {stat.st_size}",) for stat in stats]
    return DataFilesList([os.path.abspath(file) for file in files], stamps)


def _log_left_out(folder: Path, builder: str, files: Sequence[Path], read: Sequence[Path]) -> None:
    left_out = sorted(set(files) - set(read))
    if not left_out:
        return
    named = ", ".join(file.relative_to(folder).as_posix() for file in left_out[:3])
    logger.warning(
        "data.path=%r: %s of its files are read, as %s, and %s left out: %s (%s%s); to choose, set data.path to text, "
        "json, csv or parquet, and data.load_options.data_files to the files",
        str(folder),
        len(read),
        builder,
        len(left_out),
        _kinds(left_out),
        named,
        ", ..." if len(left_out) > 3 else "",
    )


def _kinds(files: Sequence[Path]) -> str:
    kinds = Counter(file.suffix or "without extension" for file in files)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5))
