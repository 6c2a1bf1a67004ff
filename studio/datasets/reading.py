"""A file as rows: jsonl, json, csv, tsv, parquet, txt, md, and gz of these. Streams, so memory stays flat.

`open_source(path)` finds out what the file is; iterating over its records gives (line, row) or (line, Problem).
Knows nothing of what a row means: that is formats.py and mapping.py.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from studio.datasets.json_stream import JsonStream, JsonStreamError
from studio.errors import DatasetError

MAX_LINE_BYTES = 32 * 1024**2
MAX_COLUMNS = 10_000
SAMPLE_BYTES = 1024**2
CHUNK_BYTES = 1024**2
MAX_UNPACKED_RATIO = 200  # text seldom packs better than 20 times; what does is a bomb
ALWAYS_UNPACKED_BYTES = 256 * 1024**2

FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
CONVERSATION_KEYS = ("messages", "conversations", "conversation")
NESTED_KEYS = ("data", "rows", "train", "examples", "items", "records", "samples", "dataset")
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

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that can't be read or mapped, and what would help. `line` counts from 1."""

    line: int
    problem: str
    fix: str

    def as_json(self) -> dict[str, Any]:
        return {"line": self.line, "problem": self.problem, "fix": self.fix}


Record = tuple[int, Row | Problem]


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
            yield Source(name, "parquet", _parquet_records(file, name))
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
    if path.is_dir():
        raise DatasetError(f"{name} is a folder.", f"Give one file: {', '.join(FILE_TYPES)}, or .gz of these.")
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
        return "csv" if _looks_like_table(sample, suffix) else "jsonl"
    if suffix in (".csv", ".tsv"):
        return "csv"
    return "text" if suffix in (".txt", ".md") or not _looks_like_table(sample, suffix) else "csv"


def _looks_like_table(sample: bytes, suffix: str) -> bool:
    """Two columns and more, lower-case names in the first line, and as many fields in nearly every line."""
    options, header = _dialect(sample, suffix)
    rows = _parsed(sample.decode("utf-8", "surrogateescape").splitlines(keepends=True)[:200], options)
    fitting = sum(len(row) == len(header) for row in rows)
    named = all(re.fullmatch(r"\s*[a-z_][a-z0-9_-]{0,39}\s*", name) for name in header)
    return len(header) > 1 and named and len(rows) > 1 and fitting >= 0.9 * len(rows)


def _parses(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), (dict, list))
    except orjson.JSONDecodeError:
        return False


# lines


def _lines(file: Any) -> Iterator[tuple[int, bytes | Problem]]:
    """Lines without their ends; one that is too long is skipped as a problem."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            megabytes = MAX_LINE_BYTES // 1024**2
            yield number, Problem(number, f"The line is longer than {megabytes} MB.", "Put one row on each line, or leave this row out.")
        else:
            yield number, line


def _jsonl_records(file: Any, _name: str, _sample: bytes) -> Iterator[Record]:
    loads = orjson.loads
    for number, line in _lines(file):
        if isinstance(line, Problem):
            yield number, line
            continue
        try:
            value = loads(line)
        except orjson.JSONDecodeError as exc:
            if line.strip():
                yield number, Problem(number, _json_complaint(line, exc), "Put one JSON object on each line.")
            continue
        yield number, value if type(value) is dict else _as_row(number, value)


def _json_complaint(line: bytes, exc: orjson.JSONDecodeError) -> str:
    text = line.lstrip()
    if b"\x00" in line:
        return "The line holds a NUL byte."
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"The line is not UTF-8 (byte {error.start + 1})."
    if re.search(rb"[:\[,]\s*-?(NaN|Infinity)\b", text):
        return "NaN and Infinity are no JSON."
    return f"Not valid JSON: {exc.msg} (column {exc.colno})."


def _as_row(number: int, value: Any) -> Row | Problem:
    """A row of a list or a bare text: a conversation, or a document."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {"messages": value}
    kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Problem(number, f"The row is {kind} where an object is expected.", 'Write each row as {"column": value, …}.')


# JSON documents


def _json_records(file: Any, name: str, _sample: bytes) -> Iterator[Record]:
    stream = JsonStream(file, MAX_LINE_BYTES)
    try:
        while (start := stream.peek()) != "":
            if start == "[":
                yield from _list_records(stream)
            elif start == "{":
                yield from _object_records(stream, name)
            else:
                line = stream.line
                yield line, _as_row(line, stream.value())
    except JsonStreamError as exc:
        fix = "Correct it there, or save the rows as JSON lines (.jsonl)."
        yield exc.line, Problem(exc.line, f"{exc}, so the rest of {name} can't be read.", fix)


def _list_records(stream: JsonStream) -> Iterator[Record]:
    for line, value in stream.items():
        if stream.bad_constant:
            yield line, Problem(line, f"{stream.bad_constant} is no JSON.", "Write null or a number.")
        elif type(value) is dict and "row_idx" in value and isinstance(value.get("row"), dict):
            yield line, value["row"]  # as the hub's dataset viewer writes rows
        else:
            yield line, value if type(value) is dict else _as_row(line, value)


def _object_records(stream: JsonStream, name: str) -> Iterator[Record]:
    """One row, columns of values, or an object around the list of rows."""
    first_line = stream.line
    row: Row = {}
    nested = False
    for key in stream.members():
        if key in NESTED_KEYS and stream.peek() == "[" and stream.peek_inside() == "{":
            nested = True
            yield from _list_records(stream)
        else:
            row[key] = stream.value()
    if nested:
        return
    for number, value in _rows_of_object(row, name):
        yield number or first_line, value


def _rows_of_object(row: Row, name: str) -> Iterator[tuple[int, Row]]:
    """The object as one row (numbered 0), or the rows that it holds as columns or under keys."""
    values = list(row.values())
    if len(values) > 1 and all(isinstance(value, dict) and value for value in values):
        if not all(key.isdigit() for value in values for key in value):
            yield from enumerate(values, start=1)  # {"a1": {"question": …}, "a2": {…}}
            return
        values = [list(value.values()) for value in values]  # {"question": {"0": …, "1": …}, "answer": {…}}
    if not _are_columns(row, values):
        yield 0, row
        return
    lengths = [len(column) for column in values]
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{column} {length}" for column, length in list(zip(row, lengths, strict=True))[:10])
        raise DatasetError(f"{name}: the columns have different numbers of values ({counts}).", "Give every column one value per row.")
    for number, fields in enumerate(zip(*values, strict=True), start=1):
        yield number, dict(zip(row, fields, strict=True))


def _are_columns(row: Row, values: list[Any]) -> bool:
    if not values or not all(isinstance(value, list) for value in values):
        return False
    lists_of_one_row = (*CONVERSATION_KEYS, "instances", "tools")
    return not any(isinstance(item, dict) for name in lists_of_one_row if name in row for item in row[name])


# CSV


def _dialect(sample: bytes, suffix: str) -> tuple[dict[str, Any], list[str]]:
    """Options for csv.reader and the header: the delimiter that gives the most lines the header's number of fields."""
    text = sample.decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True)
    if len(sample) == SAMPLE_BYTES:
        lines = lines[:-1]
    best: tuple[float, dict[str, Any], list[str]] = (-1.0, {"delimiter": ","}, [])
    for delimiter in "\t,;|" if suffix == ".tsv" else ",;\t|":
        for escape in ({}, {"escapechar": "\\", "doublequote": False}) if '\\"' in text else ({},):
            options = {"delimiter": delimiter, **escape}
            rows = _parsed(lines, options)
            if rows:
                fitting = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
                score = fitting + (len(rows[0]) > 1)
                if score > best[0]:
                    best = (score, options, rows[0])
    return best[1], best[2]


def _parsed(lines: list[str], options: dict[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    reader = csv.reader(iter(lines), strict=True, **options)
    while len(rows) < 200:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            rows.append([])
            continue
        if row:
            rows.append(row)
    return rows


def _csv_records(file: Any, name: str, sample: bytes) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)
    options, _ = _dialect(sample, Path(name).suffix.lower())
    too_long: list[Problem] = []

    def lines() -> Iterator[str]:
        for _, line in _lines(file):
            if isinstance(line, Problem):
                too_long.append(line)
            yield "" if isinstance(line, Problem) else line.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), strict=True, **options)
    header = _header(reader, name)
    width = len(header)
    start = reader.line_num + 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            swallowed = f", lines {start} to {reader.line_num}" if reader.line_num > start else ""
            fix = 'Put fields with quotes or line ends in "…", inner quotes doubled.'
            yield start, Problem(start, f"The quoting is broken ({exc}){swallowed}.", fix)
            start = reader.line_num + 1
            continue
        line, start = start, reader.line_num + 1
        if too_long:
            yield line, too_long.pop()
        elif len(fields) == width:
            yield line, dict(zip(header, fields, strict=True))
        elif fields:
            fix = "Quote fields that hold the delimiter, and give every row as many fields as the header."
            yield line, Problem(line, f"{len(fields)} fields where the header names {width}.", fix)


def _header(reader: Any, name: str) -> list[str]:
    try:
        header: list[str] = next((row for row in reader if row), [])
    except csv.Error as exc:
        raise DatasetError(f"{name}, line 1: the header can't be read ({exc}).", "Write the column names in the first line.") from None
    if len(header) > MAX_COLUMNS:
        raise DatasetError(f"{name} has {len(header):,} columns.", f"Keep the ones with text; at most {MAX_COLUMNS:,} are read.")
    header = [column.strip() or f"column {number}" for number, column in enumerate(header, start=1)]
    twice = sorted({column for column in header if header.count(column) > 1}) if len(set(header)) < len(header) else []
    if twice:
        raise DatasetError(f"{name}, line 1: the column {twice[0]!r} is named twice.", "Give each column a name of its own.")
    return header


# Parquet


def _parquet_records(file: Any, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        if table.metadata.num_columns > MAX_COLUMNS:
            raise DatasetError(
                f"{name} has {table.metadata.num_columns:,} columns.", f"Keep the ones with text; at most {MAX_COLUMNS:,} are read."
            )
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as exc:
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise DatasetError(f"{name} is no readable Parquet file ({reason}).", "Write or download it again.") from None


# plain text


def _text_records(file: Any, _name: str, sample: bytes) -> Iterator[Record]:
    """Paragraphs between blank lines; a file without blank lines gives one document per line."""
    by_line = re.search(rb"\n[ \t\r]*\n", sample.strip()) is None
    paragraph: list[bytes] = []
    start = size = 0
    for number, line in _lines(file):
        if isinstance(line, Problem):
            yield number, line
            continue
        size += len(line)
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        if paragraph and (by_line or not line.strip() or size > MAX_LINE_BYTES):
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
    "jsonl": _jsonl_records,
    "json": _json_records,
    "csv": _csv_records,
    "text": _text_records,
}


def parse_json(text: str) -> Any:
    """A JSON value inside a cell; raises ValueError, also on NaN."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
