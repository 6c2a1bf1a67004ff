"""A file as rows: jsonl, json, csv, tsv, parquet, txt, md, and gz of these. Streams, so memory stays flat.

`open_source(path)` finds out what the file is; iterating over its records gives (line, row) or (line, Problem).
Knows nothing of what a row means: that is formats.py and mapping.py.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from studio.datasets import records
from studio.datasets.json_records import json_records, jsonl_records
from studio.datasets.records import CHUNK_BYTES, SAMPLE_BYTES, Problem, Record, Row, lines_of
from studio.datasets.tables import csv_records, looks_like_table, parquet_records
from studio.errors import DatasetError

MAX_UNPACKED_RATIO = 200  # text seldom packs better than 20 times; what does is a bomb
ALWAYS_UNPACKED_BYTES = 256 * 1024**2

FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
MAGIC = {
    b"\x1f\x8b": ("an archive inside an archive", "Unpack it once."),
    b"PK\x03\x04": ("a zip archive (or an Excel file)", "Unpack it, or save the sheet as CSV."),
    b"%PDF": ("a PDF", "Copy its text into a .txt file."),
    b"\x89PNG": ("an image", "Upload text, JSON, CSV or Parquet."),
    b"\xff\xd8\xff": ("an image", "Upload text, JSON, CSV or Parquet."),
    b"SQLite format 3": ("a database", "Export the table as CSV."),
    b"BZh": ("a bzip2 archive", "Unpack it, or pack it with gzip."),
    b"\xfd7zXZ": ("an xz archive", "Unpack it, or pack it with gzip."),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "Unpack it, or pack it with gzip."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it."),
}

LONE_BYTES = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that is no UTF-8
FOREIGN = re.compile(r"[^\x00-\x7f]")
FOREIGN_IN_WORD = re.compile(r"(?<=\w)[^\x00-\x7f]|[^\x00-\x7f](?=\w)")


@dataclass
class Source:
    """An opened file: what it is, and its records, once."""

    name: str
    file_type: str  # jsonl, json, csv, parquet, text
    records: Iterator[Record]
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
        if file.peek(2)[:2] == b"\x1f\x8b":
            file = stack.enter_context(_unpacked(file, name, scratch))
            name = name.removesuffix(".gz")
        sample = _sample(file)
        if not sample.strip(b" \t\r\n\x00\xef\xbb\xbf\xff\xfe"):
            raise DatasetError(f"{name} is empty.", "Choose a file with at least one row.")
        if sample[:4] == b"PAR1" or name.lower().endswith(".parquet"):
            yield Source(name, "parquet", parquet_records(file, name))
            return
        encoding, notes = _encoding(sample, name)
        if encoding != "utf-8" or (b"\r" in sample and b"\n" not in sample):
            file = stack.enter_context(_recoded(file, name, encoding, scratch))
            sample = _sample(file)
        if sample.startswith(codecs.BOM_UTF8):
            file.seek(len(codecs.BOM_UTF8))
            sample = sample.removeprefix(codecs.BOM_UTF8)
        file_type = _file_type(name, sample)
        yield Source(name, file_type, READERS[file_type](file, name, sample), encoding, notes)


# the file as a whole


def _open(path: Path, name: str) -> io.BufferedReader:
    if path.exists() and not path.is_file():  # a pipe would hang
        what = "a folder" if path.is_dir() else "no regular file"
        raise DatasetError(f"{name} is {what}.", f"Give one file: {', '.join(FILE_TYPES)}, or .gz of these.")
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
def _unpacked(packed: io.BufferedReader, name: str, scratch: Path | None) -> Iterator[Any]:
    """A temporary file with what the gz holds; a gz inside it is unpacked no further."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            with gzip.GzipFile(fileobj=packed) as unpacked:
                while chunk := unpacked.read(CHUNK_BYTES):
                    file.write(chunk)
                    if file.tell() > max(ALWAYS_UNPACKED_BYTES, MAX_UNPACKED_RATIO * packed.tell()):
                        raise DatasetError(
                            f"{name} unpacks to more than {MAX_UNPACKED_RATIO} times its size.", "Unpack it yourself if you trust it."
                        )
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise DatasetError(f"{name} is damaged or cut off ({exc}).", "Pack or download it again.") from None
        file.seek(0)
        yield file


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
        raise DatasetError(f"{name} is binary, not text.", f"Upload one of {', '.join(FILE_TYPES)}, or .gz of these.")
    decoded = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample)
    broken = 0 if decoded.isascii() else len(LONE_BYTES.findall(decoded))
    if 2 * broken <= len(FOREIGN.findall(decoded)):  # a few bad bytes among good ones are problems of their rows
        return "utf-8", []
    return _legacy_encoding(sample, name)


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


def _legacy_encoding(sample: bytes, name: str) -> tuple[str, list[str]]:
    """A guess, but only where it makes words: lone bytes in otherwise plain text stay problems of their rows."""
    import charset_normalizer

    first = next(i for i, byte in enumerate(sample) if byte > 127)
    start = max(0, first - 2048)
    excerpt = sample[start : start + 64 * 1024]
    guess = charset_normalizer.from_bytes(excerpt).best()
    if guess is None:
        raise DatasetError(f"{name} is in an unknown encoding.", "Save the file as UTF-8.")
    encoding, text = guess.encoding, str(guess)
    if excerpt.decode("cp1252", "replace") == text:
        encoding = "cp1252"  # of the encodings that read it alike, the one most people have
    if 2 * len(FOREIGN_IN_WORD.findall(text)) < len(FOREIGN.findall(text)):
        return "utf-8", []
    return encoding, [f"Read as {encoding}, which is a guess: save the file as UTF-8 if characters look wrong."]


def _file_type(name: str, sample: bytes) -> str:
    """By content first: a JSON file called .csv is JSON."""
    suffix = Path(name).suffix.lower()
    lines = sample.lstrip().split(b"\n", 2)
    first = lines[0].strip()
    following = lines[1].strip()[:1] if len(lines) > 1 else b""
    if first[:1] in (b"{", b"["):
        whole = _parses(first)
        if whole and following in (b"{", b"["):
            return "jsonl"
        if suffix in (".jsonl", ".ndjson") and first[:1] == b"{":
            return "jsonl" if whole or following == b"{" else "json"
        if whole or suffix in (".json", ".jsonl", ".ndjson", ""):
            return "json"
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "csv" if looks_like_table(sample, suffix) else "jsonl"
    if suffix in (".csv", ".tsv"):
        return "csv"
    return "text" if suffix in (".txt", ".md") or not looks_like_table(sample, suffix) else "csv"


def _parses(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), (dict, list))
    except orjson.JSONDecodeError:
        return False


# plain text


def _text_records(file: Any, _name: str, sample: bytes) -> Iterator[Record]:
    """Paragraphs between blank lines; a file without blank lines gives one document per line."""
    by_line = re.search(rb"\n[ \t\r]*\n", sample.strip()) is None
    paragraph: list[bytes] = []
    start = size = 0
    for number, line in lines_of(file):
        if isinstance(line, Problem):
            yield number, line
            continue
        size += len(line)
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        if paragraph and (by_line or not line.strip() or size > records.MAX_LINE_BYTES):
            yield start, _document(start, paragraph)
            paragraph, size = [], 0
    if paragraph:
        yield start, _document(start, paragraph)


def _document(line: int, parts: list[bytes]) -> Row | Problem:
    try:
        return {"text": b"".join(parts).decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError as exc:
        return Problem(line, f"The text is not UTF-8 (byte {exc.start + 1}).", "Save the file as UTF-8.")


READERS: dict[str, Callable[[Any, str, bytes], Iterator[Record]]] = {
    "jsonl": jsonl_records,
    "json": json_records,
    "csv": csv_records,
    "text": _text_records,
}
