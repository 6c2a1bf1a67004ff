"""Packed files: gz and zip, unpacked into temporary files that have no names, whatever the archive says about places.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from studio.datasets.records import CHUNK_BYTES
from studio.errors import DatasetError

MAX_UNPACKED_RATIO = 200  # text seldom packs better than 20 times; what does is a bomb
ALWAYS_UNPACKED_BYTES = 256 * 1024**2
MAX_ENTRIES = 1000
MAX_DIRECTORY_BYTES = 1024**2  # of a zip's list of entries, which is held in memory

GZIP = b"\x1f\x8b"
OFFICE = ("[Content_Types].xml", "mimetype")  # first entries of .xlsx, .docx, .ods
PACKED = (".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz", ".rar")


class Allowance:
    """How many more bytes an archive may unpack to."""

    def __init__(self, name: str, packed_bytes: int) -> None:
        self._name = name
        self._left = max(ALWAYS_UNPACKED_BYTES, MAX_UNPACKED_RATIO * packed_bytes)

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise DatasetError(
                f"{self._name} unpacks to more than {MAX_UNPACKED_RATIO} times its size.", "Unpack it yourself if you trust it."
            )


@contextmanager
def unpacked_gzip(packed: BinaryIO, name: str, scratch: Path | None) -> Iterator[Any]:
    """A temporary file with what the gz holds; a gz inside it is unpacked no further."""
    allowance = Allowance(name, _size(packed))
    with gzip.GzipFile(fileobj=packed) as content, _copy(content, name, allowance, scratch) as file:
        yield file


@contextmanager
def unpacked_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, allowance: Allowance, scratch: Path | None) -> Iterator[Any]:
    """A temporary file with one entry of a zip."""
    try:
        content = archive.open(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError) as exc:
        raise _damaged(entry.filename, exc) from None
    with content, _copy(content, entry.filename, allowance, scratch) as file:
        yield file


def open_zip(packed: BinaryIO, name: str) -> zipfile.ZipFile:
    """The archive with its list of entries. Raises DatasetError."""
    try:
        _check_directory(packed, name)
        return zipfile.ZipFile(packed)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError) as exc:
        raise _damaged(name, exc) from None


def data_entries(
    archive: zipfile.ZipFile, name: str, types: tuple[str, ...], prose: tuple[str, ...]
) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """The entries that hold data, all of one of the `types`, by name (`prose` beside data is its description); and the names of those that are left out.

    Raises DatasetError on an entry that no honest archive has, on several kinds of data, and where there is none.
    """
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if entries and entries[0].filename in OFFICE:
        raise DatasetError(f"{name} is an office document.", "Save the sheet as CSV, or the text as .txt.")
    for entry in entries:
        _check_entry(entry, name)
    shown = [entry for entry in entries if not _is_hidden(entry.filename)]
    packed = [entry for entry in shown if _suffix(entry) in PACKED]
    data = [entry for entry in shown if _suffix(entry) in types and _suffix(entry) not in prose]
    data = data or [entry for entry in shown if _suffix(entry) in types]
    if not data and packed:
        raise DatasetError(f"{name} holds an archive inside an archive ({_names(packed)}).", "Unpack it once.")
    if not data:
        raise DatasetError(f"{name} holds no data file ({_names(shown) or 'it is empty'}).", f"Pack files of {', '.join(types)}.")
    if len({_suffix(entry) for entry in data}) > 1:
        raise DatasetError(
            f"{name} holds files of several kinds ({_names(data)}).", "Pack one, or files of one kind with the same columns."
        )
    left_out = [entry.filename for entry in shown if entry not in data]
    return sorted(data, key=lambda entry: entry.filename), left_out


def _check_directory(packed: BinaryIO, name: str) -> None:
    """Look at the size of the list of entries before it is read."""
    size = _size(packed)
    packed.seek(max(0, size - 2**16 - 22))
    tail = packed.read()
    packed.seek(0)
    end = tail.rfind(b"PK\x05\x06")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    count = int.from_bytes(tail[end + 10 : end + 12], "little") if end >= 0 else 0
    if directory > MAX_DIRECTORY_BYTES or count > MAX_ENTRIES:
        raise DatasetError(f"{name} has more than {MAX_ENTRIES:,} entries.", "Join the files to one, and pack that.")


def _check_entry(entry: zipfile.ZipInfo, name: str) -> None:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    shown = entry.filename[:100]
    if ".." in path.parts or path.is_absolute() or ":" in path.parts[0]:
        raise DatasetError(f"{name} has an entry that points outside of the archive ({shown!r}).", "Pack the files by their own names.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DatasetError(f"{name} has an entry that is a link ({shown!r}).", "Pack the file that it leads to.")
    if entry.flag_bits & 1:
        raise DatasetError(f"{name} is encrypted ({shown!r}).", "Pack it without a password.")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _suffix(entry: zipfile.ZipInfo) -> str:
    return PurePosixPath(entry.filename).suffix.lower()


def _names(entries: list[zipfile.ZipInfo]) -> str:
    names = [entry.filename[:100] for entry in entries]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


@contextmanager
def _copy(content: Any, name: str, allowance: Allowance, scratch: Path | None) -> Iterator[Any]:
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            while chunk := content.read(CHUNK_BYTES):
                allowance.take(len(chunk))
                file.write(chunk)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, ValueError) as exc:
            raise _damaged(name, exc) from None
        file.seek(0)
        yield file


def _damaged(name: str, exc: Exception) -> DatasetError:
    return DatasetError(f"{name} is damaged or cut off ({str(exc)[:100] or type(exc).__name__}).", "Pack or download it again.")


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
