"""Rows of tables: CSV and TSV, with delimiter and quoting found out, and Parquet."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio.datasets import records
from studio.datasets.records import MAX_COLUMNS, SAMPLE_BYTES, Problem, Record, lines_of
from studio.errors import DatasetError


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


def csv_records(file: Any, name: str, sample: bytes) -> Iterator[Record]:
    csv.field_size_limit(records.MAX_LINE_BYTES)
    options, _ = _dialect(sample, Path(name).suffix.lower())
    too_long: list[Problem] = []

    def lines() -> Iterator[str]:
        for number, line in lines_of(file):
            if isinstance(line, Problem):
                too_long.append(line)
            elif number == 1 and line.count(options["delimiter"].encode()) > 10 * MAX_COLUMNS:  # a million fields take much memory
                raise _too_many_columns(name, line.count(options["delimiter"].encode()) + 1)
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
            swallowed = f", lines {start} to {reader.line_num}" * (reader.line_num > start)
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
        raise _too_many_columns(name, len(header))
    header = [column.strip() or f"column {number}" for number, column in enumerate(header, start=1)]
    if len(set(header)) < len(header):
        twice = sorted(column for column, count in Counter(header).items() if count > 1)
        raise DatasetError(f"{name}, line 1: the column {twice[0]!r} is named twice.", "Give each column a name of its own.")
    return header


def _too_many_columns(name: str, count: int) -> DatasetError:
    return DatasetError(f"{name} has {count:,} columns.", f"Keep the ones with text; at most {MAX_COLUMNS:,} are read.")


def looks_like_table(sample: bytes, suffix: str) -> bool:
    """Two columns and more, lower-case names in the first line, and as many fields in nearly every line."""
    options, header = _dialect(sample, suffix)
    rows = _parsed(sample.decode("utf-8", "surrogateescape").splitlines(keepends=True)[:200], options)
    fitting = sum(len(row) == len(header) for row in rows)
    named = all(re.fullmatch(r"\s*[a-z_][a-z0-9_-]{0,39}\s*", name) for name in header)
    return len(header) > 1 and named and len(rows) > 1 and fitting >= 0.9 * len(rows)


def parquet_records(file: Any, name: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        if table.metadata.num_columns > MAX_COLUMNS:
            raise _too_many_columns(name, table.metadata.num_columns)
        number = 0
        for batch in table.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as exc:
        reason = str(exc).partition("\n")[0][:200] or type(exc).__name__
        raise DatasetError(f"{name} is no readable Parquet file ({reason}).", "Write or download it again.") from None
