"""A file as rows: what it is (file_types.py), unpacked and in which encoding. Streams, so memory stays flat.

`open_source(path)` finds out what the file is; iterating over its records gives (line, row) or (line, Problem)."""

from __future__ import annotations

import codecs
import io
import re
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from studio.datasets.archives import (
    PACKED_SUFFIXES,
    WORKBOOK,
    Allowance,
    Entry,
    data_entries,
    is_tar,
    open_zip,
    packing_of,
    tar_entries,
    unpacked_entry,
    unpacked_stream,
    zip_entries,
)
from studio.datasets.file_types import PACKED, PROSE, SUFFIXES, UNRECOGNISED, file_type
from studio.datasets.records import CHUNK_BYTES, SAMPLE_BYTES, Problem, Record
from studio.errors import DatasetError, listed

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # with entries, and without
INSIDE = ("an archive inside an archive", "Unpack it once.")
IMAGE = ("an image", "Upload text, JSON, CSV or Parquet.")
ARROW = ("an Arrow or Feather file", 'Write it as Parquet: pandas.read_feather("FILE").to_parquet("rows.parquet").')
MAGIC = {
    b"\x1f\x8b": INSIDE,
    b"PK\x03\x04": INSIDE,
    b"BZh": INSIDE,
    b"\xfd7zXZ": INSIDE,
    b"\x28\xb5\x2f\xfd": INSIDE,
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it."),
    b"Rar!": ("a RAR archive", "Unpack it."),
    b"%PDF": ("a PDF", "Copy its text into a .txt file."),
    b"{\\rtf": ("a rich text document", "Save the text as .txt."),
    b"\xd0\xcf\x11\xe0": ("an old office document (.xls or .doc)", "Save the sheet as .xlsx or CSV, or the text as .txt."),
    b"\x89PNG": IMAGE,
    b"GIF8": IMAGE,
    b"\xff\xd8\xff": IMAGE,
    b"SQLite format 3": ("a database", "Export the table as CSV."),
    b"ARROW1": ARROW,
    b"FEA1": ARROW,
    b"\xff\xff\xff\xff": ("an Arrow stream", 'Write it as Parquet: datasets.Dataset.from_file("FILE").to_parquet("rows.parquet").'),
    b"\x89HDF": ("an HDF5 file", "Write the table as Parquet or CSV."),
    b"Obj\x01": ("an Avro file", "Write the table as Parquet or JSON lines."),
    b"ORC": ("an ORC file", "Write the table as Parquet."),
    b"GGUF": ("a model", "Upload rows: text, JSON, CSV or Parquet."),
}
HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")  # of a folder that datasets.save_to_disk wrote

LONE_BYTES = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that is no UTF-8
FOREIGN = re.compile(r"[^\x00-\x7f]")
FOREIGN_IN_WORD = re.compile(r"(?<=\w)[^\x00-\x7f]|[^\x00-\x7f](?=\w)")


@dataclass
class Source:
    """An opened file: what it is, and its records, once."""

    name: str
    file_type: str  # jsonl, json, csv, parquet, text
    records: Iterable[Record]
    encoding: str = "utf-8"
    notes: list[str] = field(default_factory=list)


@contextmanager
def open_source(path: Path, filename: str | None = None, scratch: Path | None = None) -> Iterator[Source]:
    """Open `path`. `filename` is its name for people (an upload's own); `scratch` a folder for unpacked or re-encoded copies.

    Raises DatasetError when the file as a whole can't be read: missing, empty, binary, broken archive, unknown encoding.
    """
    name = filename or path.name
    with ExitStack() as stack:
        file = stack.enter_context(_open(path, name))
        start = file.peek(8)
        if packing := packing_of(start):
            file = stack.enter_context(unpacked_stream(file, packing, name, scratch))
            name = _unpacked_name(name)
        elif start[:4] in ZIP_STARTS:
            archive = stack.enter_context(open_zip(file, name))
            if WORKBOOK not in archive.namelist():
                yield _archive_source(zip_entries(archive, name), name, scratch, stack)
                return
            file.seek(0)
            name = f"{Path(name).stem}.xlsx"
        if is_tar(file):
            yield _archive_source(tar_entries(file, name), name, scratch, stack)
            return
        yield _source(file, name, scratch, stack)


def _unpacked_name(name: str) -> str:
    if name.lower().endswith(".tgz"):
        return f"{name[:-4]}.tar"
    ending = next((suffix for suffix in PACKED_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(ending)]


def _source(file: Any, name: str, scratch: Path | None, stack: ExitStack) -> Source:
    """The records of an unpacked file, which `stack` keeps open."""
    sample = _sample(file)
    if not sample.strip(b" \t\r\n\x00\xef\xbb\xbf\xff\xfe"):
        raise DatasetError(f"{name} is empty.", "Choose a file with at least one row.")
    if binary := file_type(name, sample, binary=True):
        records = binary.read(file, name, sample)
        return Source(name, binary.name, records, notes=[*getattr(records, "notes", [])])
    if not name.lower().endswith(PROSE) and HTML.match(sample.removeprefix(codecs.BOM_UTF8)[:4096]):
        raise DatasetError(f"{name} is a web page (HTML).", "Save its table as CSV or .xlsx, or its text as .txt.")
    encoding, notes = _encoding(sample, name)
    if encoding != "utf-8" or (b"\r" in sample and b"\n" not in sample):
        file = stack.enter_context(_recoded(file, name, encoding, scratch))
        sample = _sample(file)
    if sample.startswith(codecs.BOM_UTF8):
        file.seek(len(codecs.BOM_UTF8))
        sample = sample.removeprefix(codecs.BOM_UTF8)
    found = file_type(name, sample, binary=False) or UNRECOGNISED
    return Source(name, found.name, found.read(file, name, sample), encoding, notes)


def _archive_source(packed: list[Entry], name: str, scratch: Path | None, stack: ExitStack) -> Source:
    """The data files of an archive, one after the other."""
    entries, left_out = data_entries(packed, name, SUFFIXES, PROSE)
    allowance = Allowance(name, sum(entry.packed_bytes for entry in entries))

    def opened(entry: Entry, keep: ExitStack) -> Source:
        return _source(keep.enter_context(unpacked_entry(entry, allowance, scratch)), entry.filename, scratch, keep)

    def all_records() -> Iterator[Record]:
        columns = yield from _named_records(first)
        for entry in entries[1:]:
            with ExitStack() as keep:
                source = opened(entry, keep)
                others = yield from _named_records(source, first.file_type, columns)
                columns = columns or others

    first = opened(entries[0], stack)
    notes = [*first.notes]
    if left_out:
        notes.append(f"Left out: {listed(left_out, 10)}.")
    if len(entries) == 1:
        return Source(first.name, first.file_type, first.records, first.encoding, notes)
    notes.append(f"Read one after the other: {listed((entry.filename for entry in entries), 10)}.")
    return Source(name, first.file_type, all_records(), first.encoding, notes)


def _named_records(source: Source, file_type: str = "", columns: frozenset[str] = frozenset()) -> Generator[Record, None, frozenset[str]]:
    """Records of one file of several, its name in their problems; gives back the columns of its first row.

    Raises DatasetError where the file is of another type than the first, or has none of its columns.
    """
    fix = "Pack one file, or files of one kind with the same columns."
    if file_type and source.file_type != file_type:
        raise DatasetError(f"{source.name} is of another type ({source.file_type}) than the first file ({file_type}).", fix)
    own: frozenset[str] = frozenset()
    for line, row in source.records:
        if isinstance(row, Problem):
            yield line, Problem(line, f"In {source.name}: {row.problem}", row.fix)
            continue
        if not own:
            own = frozenset(row)
            if columns and not own & columns:
                raise DatasetError(f"{source.name} has none of the columns of the first file ({listed(sorted(columns))}).", fix)
        yield line, row
    return own


# the file as a whole


def _open(path: Path, name: str) -> io.BufferedReader:
    if path.is_dir() and any((path / part).is_file() for part in SAVED):
        fix = f'Write it as one file: datasets.load_from_disk("{name}").to_parquet("rows.parquet"); of several splits, choose one.'
        raise DatasetError(f"{name} is a folder that datasets.save_to_disk wrote.", fix)
    if path.exists() and not path.is_file():  # a pipe would hang
        what = "a folder" if path.is_dir() else "no regular file"
        raise DatasetError(f"{name} is {what}.", f"Give one file: {', '.join(SUFFIXES)}, or {' or '.join(PACKED)} of these.")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise DatasetError(f"There is no file {path}.", "Check the path.") from None
    except (OSError, ValueError) as exc:
        raise DatasetError(f"{path} can't be opened ({type(exc).__name__}).", "Check its permissions.") from None


def _sample(file: Any) -> bytes:
    sample: bytes = file.read(SAMPLE_BYTES)
    file.seek(0)
    return sample


@contextmanager
def _recoded(source: BinaryIO, name: str, encoding: str, scratch: Path | None) -> Iterator[Any]:
    """A temporary UTF-8 copy with Unix line ends."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        text = io.TextIOWrapper(source, encoding=encoding, errors="strict", newline=None)
        try:
            while chunk := text.read(CHUNK_BYTES):
                file.write(chunk.encode("utf-8", "surrogatepass"))
        except UnicodeError as exc:
            raise DatasetError(f"{name} can't be read as {encoding} ({exc.__class__.__name__}).", "Save the file as UTF-8.") from None
        finally:
            text.detach()
        file.seek(0)
        yield file


def _encoding(sample: bytes, name: str) -> tuple[str, list[str]]:
    """A Python encoding name, and notes for people where it is a guess. Raises DatasetError on binary data."""
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")):
        if sample.startswith(mark):
            return encoding, []
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", []
    for magic, (what, fix) in MAGIC.items():
        if sample.startswith(magic):
            raise DatasetError(f"{name} is {what}.", fix)
    wide = _wide_encoding(sample[:4096])
    if wide:
        return wide, [f"Read as {wide}: every other byte is zero."]
    controls = sum(sample.count(bytes([byte])) for byte in range(32) if byte not in b"\t\n\r\f\v\x1b")
    if controls > len(sample) * 0.05:
        raise DatasetError(f"{name} is binary, not text.", f"Upload one of {', '.join(SUFFIXES)}, or {' or '.join(PACKED)} of these.")
    decoded = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    broken = 0 if decoded.isascii() else len(LONE_BYTES.findall(decoded))
    if 2 * broken <= len(FOREIGN.findall(decoded)):  # a few bad bytes among good ones are problems of their rows
        return "utf-8", []
    return _legacy_encoding(sample)


def _wide_encoding(sample: bytes) -> str:
    """UTF-16 or UTF-32 without a byte order mark, told by where the zero bytes are."""
    zeros = [sample[i::4].count(0) / max(1, len(sample) // 4) for i in range(4)]
    high = [share > 0.7 for share in zeros]
    if high == [False, True, True, True]:
        return "utf-32-le"
    if high == [True, True, True, False]:
        return "utf-32-be"
    if high == [False, True, False, True]:
        return "utf-16-le"
    if high == [True, False, True, False]:
        return "utf-16-be"
    return ""


def _legacy_encoding(sample: bytes) -> tuple[str, list[str]]:
    """A guess, but only where it makes words: lone bytes in otherwise plain text stay problems of their rows."""
    import charset_normalizer

    first = next(i for i, byte in enumerate(sample) if byte > 127)
    start = max(0, first - 2048)
    excerpt = sample[start : start + 64 * 1024]
    guess = charset_normalizer.from_bytes(excerpt).best()
    if guess is None:
        return "utf-8", []
    encoding, text = guess.encoding, str(guess)
    if excerpt.decode("cp1252", "replace") == text:
        encoding = "cp1252"  # of the encodings that read it alike, the one most people have
    if 2 * len(FOREIGN_IN_WORD.findall(text)) < len(FOREIGN.findall(text)):
        return "utf-8", []
    return encoding, [f"Read as {encoding}, which is a guess: save the file as UTF-8 if characters look wrong."]
