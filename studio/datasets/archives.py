"""Packed files: gz, bz2, xz, zst, zip and tar, unpacked into temporary files that have no names, whatever the archive says about places.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from studio.datasets.records import CHUNK_BYTES
from studio.errors import DatasetError, listed

MAX_UNPACKED_RATIO = 200  # text seldom packs better than 20 times; what does is a bomb
ALWAYS_UNPACKED_BYTES = 256 * 1024**2
MAX_ENTRIES = 1000
MAX_DIRECTORY_BYTES = 1024**2  # of a zip's list of entries, which is held in memory

MAX_XZ_BYTES = 256 * 1024**2  # of memory that a stream may ask for
GZIP = b"\x1f\x8b"
PACKINGS = {GZIP: "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by their first bytes
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
TAR = b"ustar"  # at TAR_PLACE
TAR_PLACE = 257
WORKBOOK = "xl/workbook.xml"
OFFICE = {
    "word/document.xml": ("a Word document", "Save the text as .txt."),
    "ppt/presentation.xml": ("a presentation", "Save the text as .txt."),
    "xl/workbook.bin": ("an .xlsb workbook", "Save it as .xlsx, or the sheet as CSV."),
    "mimetype": ("an OpenDocument file", "Save the sheet as .xlsx or CSV, or the text as .txt."),
    "[Content_Types].xml": ("an unknown one", "Save the sheet as .xlsx or CSV, or the text as .txt."),
}
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


def packing_of(start: bytes) -> str:
    """What a file that begins with `start` is packed with; ""."""
    return next((packing for mark, packing in PACKINGS.items() if start.startswith(mark)), "")


@contextmanager
def unpacked_stream(packed: BinaryIO, packing: str, name: str, scratch: Path | None) -> Iterator[Any]:
    """A temporary file with what a single packed file holds; what is packed inside it is unpacked no further."""
    allowance = Allowance(name, _size(packed))
    with _reader(packed, packing) as content, _copy(content, name, allowance, scratch) as file:
        yield file


def _reader(packed: BinaryIO, packing: str) -> Any:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=packed)
    if packing == "bzip2":
        return bz2.BZ2File(packed)
    if packing == "xz":
        return _Xz(packed)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd")


class _Xz:
    """An xz file that may ask for so much memory at most; one stream behind the other."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decoder: lzma.LZMADecompressor | None = None
        self._rest = b""

    def __enter__(self) -> _Xz:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder = None

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder is None or self._decoder.eof:
                self._rest = (self._decoder.unused_data if self._decoder else b"") or self._packed.read(CHUNK_BYTES)
                if self._decoder is not None:
                    self._rest = self._rest.lstrip(b"\x00")  # padding between streams
                if not self._rest:
                    return b""
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_BYTES)
            elif self._decoder.needs_input and not self._rest:
                self._rest = self._packed.read(CHUNK_BYTES)
                if not self._rest:
                    raise EOFError("the file ends in the middle")
            given, self._rest = self._rest, b""
            if block := self._decoder.decompress(given, size):
                return block


@dataclass(frozen=True)
class Entry:
    """A file of an archive."""

    filename: str
    packed_bytes: int
    open: Callable[[], Any]
    is_link: bool = False
    is_encrypted: bool = False


@contextmanager
def unpacked_entry(entry: Entry, allowance: Allowance, scratch: Path | None) -> Iterator[Any]:
    """A temporary file with one entry of an archive."""
    try:
        content = entry.open()
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, OSError, ValueError) as exc:
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


def zip_entries(archive: zipfile.ZipFile, name: str) -> list[Entry]:
    """The files of a zip. Raises DatasetError where it is an office document."""
    names = set(archive.namelist())
    for part, (what, fix) in OFFICE.items():
        if part in names:
            raise DatasetError(f"{name} is an office document ({what}).", fix)
    return [
        Entry(
            info.filename,
            info.compress_size,
            partial(archive.open, info),
            is_link=stat.S_ISLNK(info.external_attr >> 16),
            is_encrypted=bool(info.flag_bits & 1),
        )
        for info in archive.infolist()
        if not info.is_dir()
    ]


def is_tar(file: Any) -> bool:
    start: bytes = file.read(TAR_PLACE + len(TAR))
    file.seek(0)
    return start[TAR_PLACE:] == TAR


def tar_entries(file: BinaryIO, name: str) -> list[Entry]:
    """The files of a tar that is not packed, or is unpacked."""
    entries = []
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - `file` is closed by the caller
        for number, info in enumerate(archive):
            if number >= MAX_ENTRIES:
                raise DatasetError(f"{name} has more than {MAX_ENTRIES:,} entries.", "Join the files to one, and pack that.")
            if not info.isdir():
                entries.append(Entry(info.name, info.size // 100, partial(archive.extractfile, info), is_link=not info.isreg()))
    except (tarfile.TarError, OSError, ValueError, EOFError) as exc:
        raise _damaged(name, exc) from None
    return entries


def data_entries(entries: list[Entry], name: str, types: tuple[str, ...], prose: tuple[str, ...]) -> tuple[list[Entry], list[str]]:
    """The entries that hold data, all of one of the `types`, by name (`prose` beside data is its description); and the names of those that are left out.

    Raises DatasetError on an entry that no honest archive has, on several kinds of data, and where there is none.
    """
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


def _check_entry(entry: Entry, name: str) -> None:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    shown = entry.filename[:100]
    if ".." in path.parts or path.is_absolute() or ":" in (path.parts or ("",))[0]:
        raise DatasetError(f"{name} has an entry that points outside of the archive ({shown!r}).", "Pack the files by their own names.")
    if entry.is_link:
        raise DatasetError(f"{name} has an entry that is a link ({shown!r}).", "Pack the file that it leads to.")
    if entry.is_encrypted:
        raise DatasetError(f"{name} is encrypted ({shown!r}).", "Pack it without a password.")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _suffix(entry: Entry) -> str:
    return PurePosixPath(entry.filename).suffix.lower()


def _names(entries: list[Entry]) -> str:
    names = [entry.filename[:100] for entry in entries]
    return listed(names, 10)


@contextmanager
def _copy(content: Any, name: str, allowance: Allowance, scratch: Path | None) -> Iterator[Any]:
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            while chunk := content.read(CHUNK_BYTES):
                allowance.take(len(chunk))
                file.write(chunk)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError, ValueError) as exc:
            raise _damaged(name, exc) from None
        except OSError as exc:
            if exc.errno is not None:
                raise  # of the disk
            raise _damaged(name, exc) from None
        file.seek(0)
        yield file


def _damaged(name: str, exc: Exception) -> DatasetError:
    return DatasetError(f"{name} is damaged or cut off ({str(exc)[:100] or type(exc).__name__}).", "Pack or download it again.")


def _size(file: BinaryIO) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size
