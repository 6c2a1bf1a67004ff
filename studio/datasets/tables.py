"""Rows of tables: CSV and TSV, with delimiter and quoting found out, and Parquet."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.datasets import records
from studio.datasets.records import MAX_COLUMNS, SAMPLE_BYTES, Problem, Record, lines_of
from studio.errors import DatasetError

SEPARATOR = re.compile(r"""\s*["']?sep=(\\t|.)["']?\s*\Z""", re.IGNORECASE)  # a first line of spreadsheet programs


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    options: dict[str, Any]  # of csv.reader
    header: list[str]
    names_separator: bool = False  # in its first line
    is_spaced: bool = False  # blanks stand between delimiters and quotes
    is_padded: bool = False  # blanks stand around the fields

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Lines as csv.reader takes them, as many as there are."""
        given = iter(lines)
        if self.names_separator:
            given = itertools.chain([next(given, "")[:0]], given)
        return _tightened(given, self.options["delimiter"]) if self.is_spaced else given

    def field(self, field: str) -> str:
        return field.strip(" ") if self.is_padded else field


def _dialect(sample: bytes, suffix: str) -> Dialect:
    """The delimiter and quoting that give the most lines the header's number of fields."""
    text = sample.decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True)
    if len(sample) == SAMPLE_BYTES:
        lines = lines[:-1]
    named = SEPARATOR.match(lines[0]) if lines else None
    delimiters = ",;\t|"
    if suffix == ".tsv":
        delimiters = "\t,;|"
    if named is not None:
        delimiters = named[1].replace("\\t", "\t")
        lines = ["\n", *lines[1:]]
    best: tuple[float, Dialect] = (-1.0, Dialect({"delimiter": delimiters[0]}, [], named is not None))
    for delimiter in delimiters:
        for is_spaced in _ways(lines, delimiter):
            for escape in ({}, {"escapechar": "\\", "doublequote": False}) if '\\"' in text else ({},):
                options = {"delimiter": delimiter, **escape}
                given = _tightened(lines, delimiter) if is_spaced else iter(lines)
                rows = _parsed(given, options)
                if rows:
                    fitting = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
                    score = fitting + (len(rows[0]) > 1)
                    if score > best[0]:
                        best = (score, Dialect(options, rows[0], named is not None, is_spaced, _are_padded(rows[0])))
    return best[1]


def _ways(lines: list[str], delimiter: str) -> tuple[bool, ...]:
    """Whether to try to read without the blanks between delimiters and quotes; first, as otherwise the quotes would become text."""
    mark = re.escape(delimiter)
    if any(re.search(rf'(?:^|{mark})[ ]+"|"[ ]+(?:{mark}|$)', line) for line in lines[:200]):
        return True, False
    return (False,)


def _are_padded(header: list[str]) -> bool:
    """Whether blanks stand behind the delimiters, or before them."""
    return len(header) > 1 and (all(name[:1] == " " for name in header[1:]) or all(name[-1:] == " " for name in header[:-1]))


def _tightened(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """Lines without the blanks between a delimiter and a quote; texts in quotes stay as they are, also over several lines."""
    mark = re.escape(delimiter)
    behind = re.compile(rf"\A[ ]+(?={mark}|\r?\n|\Z)")  # what comes after a closing quote
    before = re.compile(rf"(\A|{mark})[ ]+\Z")  # what comes before an opening one
    is_open = False
    for line in lines:
        parts = line.split('"')
        last = len(parts) - 1
        for number, part in enumerate(parts):
            if is_open == (number % 2 == 0):
                continue  # inside of quotes
            if number > 0 or is_open:
                part = behind.sub("", part)
            if number < last and (number == 0 or delimiter in part):
                part = before.sub(r"\1", part)
            parts[number] = part
        yield '"'.join(parts)
        is_open = is_open != (last % 2 == 1)


def _parsed(lines: Iterator[str], options: dict[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    reader = csv.reader(lines, strict=True, **options)
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


def csv_records(file: Any, name: str, sample: bytes) -> Iterator[Record]:
    csv.field_size_limit(records.MAX_LINE_BYTES)
    dialect = _dialect(sample, Path(name).suffix.lower())
    options = dialect.options
    too_long: list[Problem] = []

    def lines() -> Iterator[str]:
        for number, line in lines_of(file):
            if isinstance(line, Problem):
                too_long.append(line)
            elif number == 1 and line.count(options["delimiter"].encode()) > 10 * MAX_COLUMNS:  # a million fields take much memory
                raise _too_many_columns(name, line.count(options["delimiter"].encode()) + 1)
            yield "" if isinstance(line, Problem) else line.decode("utf-8", "surrogateescape")

    reader = csv.reader(dialect.lines(lines()), strict=True, **options)
    header = _header(reader, name)
    width = len(header)
    start = reader.line_num + 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            swallowed = f", lines {start} to {reader.line_num}" * (reader.line_num > start)
            fix = 'Put fields with quotes or line ends in "…", inner quotes doubled.'
            yield start, Problem(start, f"The quoting is broken ({exc}){swallowed}.", fix)
            start = reader.line_num + 1
            continue
        line, start = start, reader.line_num + 1
        if too_long:
            yield line, too_long.pop()
        elif len(fields) == width:
            if dialect.is_padded:
                fields = [dialect.field(field) for field in fields]
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
        raise _too_many_columns(name, len(header))
    return named_columns(header, name)


def named_columns(header: list[str], name: str) -> list[str]:
    """The names of columns, each once; raises DatasetError where one stands twice."""
    header = [column.strip() or f"column {number}" for number, column in enumerate(header, start=1)]
    if len(set(header)) < len(header):
        twice = sorted(column for column, count in Counter(header).items() if count > 1)
        raise DatasetError(f"{name}, line 1: the column {twice[0]!r} is named twice.", "Give each column a name of its own.")
    return header


def _too_many_columns(name: str, count: int) -> DatasetError:
    return DatasetError(f"{name} has {count:,} columns.", f"Keep the ones with text; at most {MAX_COLUMNS:,} are read.")


def looks_like_table(sample: bytes, suffix: str) -> bool:
    """Two columns and more, lower-case names in the first line, and as many fields in nearly every line."""
    dialect = _dialect(sample, suffix)
    header = dialect.header
    rows = _parsed(dialect.lines(sample.decode("utf-8", "surrogateescape").splitlines(keepends=True)[:200]), dialect.options)
    fitting = sum(len(row) == len(header) for row in rows)
    named = all(re.fullmatch(r"\s*[a-z_][a-z0-9_-]{0,39}\s*", name) for name in header)
    return len(header) > 1 and named and len(rows) > 1 and fitting >= 0.9 * len(rows)


def without_nulls(value: Any) -> Any:
    """A nested value of a table, whose objects have the keys of all rows: without those that this row does not have."""
    if type(value) is dict:
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    if type(value) is list:
        return [without_nulls(item) for item in value]
    return value


def parquet_records(file: Any, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        if table.metadata.num_columns > MAX_COLUMNS:
            raise _too_many_columns(name, table.metadata.num_columns)
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield number, {name: without_nulls(value) for name, value in row.items()}
    except KeyError as exc:
        raise DatasetError(f"{name} has a map with the key {str(exc)[:80]} twice.", "Leave one of them out.") from None
    except (pyarrow.ArrowException, OSError) as exc:
        reason = str(exc).partition("\n")[0][:200] or type(exc).__name__
        raise DatasetError(f"{name} is no readable Parquet file ({reason}).", "Write or download it again.") from None
