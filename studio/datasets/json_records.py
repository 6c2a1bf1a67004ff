"""Rows of JSON files: one object per line, or one document with a list, columns, or rows under a key.

A key that stands twice in an object is a problem of its row: other readers take the last value and leave the first one out unsaid
(so does this one in a row of more than 4 MB).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

from studio.datasets import records
from studio.datasets.json_stream import MAX_SEARCHED, JsonStream, JsonStreamError, key_twice
from studio.datasets.records import MAX_COLUMNS, SAMPLE_BYTES, Problem, Record, Row, is_too_long, lines_of, skip_line, too_long
from studio.errors import DatasetError, listed

CONVERSATION_KEYS = ("messages", "conversations", "conversation")
MAX_VALUES = 500_000  # of one row
LONG_NUMBER = re.compile(rb"\d{19}")  # other readers make floats of such whole numbers
LISTS_OF_ONE_ROW = (*CONVERSATION_KEYS, "instances", "tools")
SPLIT_KEYS = frozenset({"columns", "index", "data", "index_names", "column_names"})
NESTED_KEYS = ("data", "rows", "train", "examples", "items", "records", "samples", "dataset")


class JsonLines:
    """Rows of a file with one object on each line: one by one, or, from where that stopped, as blocks of whole lines."""

    def __init__(self, file: Any, _name: str = "", _sample: bytes = b"") -> None:
        self._file = file
        self._number = 0  # of lines read

    def __iter__(self) -> Iterator[Record]:
        before = self._number
        for number, line in lines_of(self._file):
            self._number = before + number
            record = Problem(self._number, line.problem, line.fix) if isinstance(line, Problem) else json_line(self._number, line)
            if record is not None:
                yield self._number, record

    def blocks(self) -> Iterator[tuple[int, bytes | Problem]]:
        """(number of the first line, whole lines of about BLOCK_BYTES), or a line that is too long."""
        while block := self._file.read(records.BLOCK_BYTES):
            first = self._number + 1
            last_line = block.rfind(b"\n") + 1
            if last_line < len(block):
                block += self._file.readline(records.MAX_LINE_BYTES + 1)
            long_line = block[last_line:] if len(block) - last_line > min(records.MAX_WIDE_BYTES, records.MAX_LINE_BYTES) else b""
            if not is_too_long(long_line):
                long_line = b""
            if long_line:
                if not block.endswith(b"\n"):
                    skip_line(self._file)
                block = block[:last_line]
            self._number += block.count(b"\n") + (block != b"" and not block.endswith(b"\n"))
            if block:
                yield first, block
            if long_line:
                self._number += 1
                yield self._number, too_long(self._number, long_line)


def json_value(line: bytes) -> Any:
    """The value of a line; whole numbers of any size keep their digits. Raises ValueError."""
    value = orjson.loads(line)
    if LONG_NUMBER.search(line):
        with suppress(RecursionError):
            return json.loads(line)
    return value


def json_bytes(value: Any) -> bytes:
    """A value as one line; whole numbers of any size keep their digits. Raises TypeError or ValueError."""
    try:
        return orjson.dumps(value)
    except TypeError as exc:
        if "64-bit" not in str(exc):
            raise
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def json_line(number: int, line: bytes) -> Row | Problem | None:
    """The row of one line; None for a blank one."""
    if len(line) > SAMPLE_BYTES and line.count(b",") > MAX_VALUES:  # each takes many times its bytes in memory
        return Problem(number, f"The row has more than {MAX_VALUES:,} values.", "Keep the ones with text, or leave the row out.")
    try:
        value = json_value(line)
    except ValueError:
        return _json_problem(number, line.strip(b" \t\r\n"))
    if len(line) <= MAX_SEARCHED and (twice := key_twice(line.decode(), value)):
        return _twice(number, twice)
    return value if type(value) is dict else as_row(number, value)


def _twice(number: int, key: str) -> Problem:
    return Problem(number, f"The key {key[:80]!r} stands twice in one object.", "Leave one of them out.")


def _json_problem(number: int, line: bytes) -> Problem | None:
    if not line:
        return None
    try:
        orjson.loads(line)
        complaint = "A number has too many digits."
    except orjson.JSONDecodeError as exc:
        complaint = _json_complaint(line, exc)
    return Problem(number, complaint, "Put one JSON object on each line.")


def _json_complaint(line: bytes, exc: orjson.JSONDecodeError) -> str:
    if b"\x00" in line:
        return "The line holds a NUL byte."
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"The line is not UTF-8 (byte {error.start + 1})."
    if re.search(rb"[:\[,]\s*-?(NaN|Infinity)\b", line):
        return "NaN and Infinity are no JSON."
    return f"Not valid JSON: {exc.msg} (column {exc.colno})."


def as_row(number: int, value: Any) -> Row | Problem:
    """A row of a list or a bare text: a conversation, or a document."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {"messages": value}
    kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Problem(number, f"The row is {kind} where an object is expected.", 'Write each row as {"column": value, …}.')


def json_records(file: Any, name: str, _sample: bytes) -> Iterator[Record]:
    stream = JsonStream(file, records.MAX_LINE_BYTES)
    try:
        while (start := stream.peek()) != "":
            if start == "[":
                yield from _list_records(stream)
            elif start == "{":
                yield from _object_records(stream, name)
            else:
                line = stream.line
                yield line, as_row(line, stream.value())
    except JsonStreamError as exc:
        fix = "Correct it there, or save the rows as JSON lines (.jsonl)."
        yield exc.line, Problem(exc.line, f"{exc}, so the rest of {name} can't be read.", fix)


def _list_records(stream: JsonStream) -> Iterator[Record]:
    for line, value in stream.items():
        if isinstance(value, JsonStreamError):
            yield line, Problem(line, f"{value}.", "Correct it there, or leave the row out.")
        elif stream.bad_constant:
            yield line, Problem(line, f"{stream.bad_constant} is no JSON.", "Write null or a number.")
        elif stream.twice:
            yield line, _twice(line, stream.twice)
        elif type(value) is dict and "row_idx" in value and isinstance(value.get("row"), dict):
            yield line, value["row"]  # as the hub's dataset viewer writes rows
        else:
            yield line, value if type(value) is dict else as_row(line, value)


def _object_records(stream: JsonStream, name: str) -> Iterator[Record]:
    """One row, columns of values, or an object around the list of rows."""
    first_line = stream.line
    row: Row = {}
    nested = False
    columns = 0
    for key in stream.members():
        if key in NESTED_KEYS and stream.peek() == "[" and stream.peek_inside() == "{":
            nested = True
            yield from _list_records(stream)
        else:
            again = key in row
            row[key] = value = stream.value()
            if again or stream.twice:
                found = _twice(first_line, key if again else stream.twice)
                raise DatasetError(f"{name}: {found.problem}", found.fix)
            columns += not isinstance(value, dict)  # objects may be rows of their own
            if columns > MAX_COLUMNS:
                raise DatasetError(f"{name} has more than {MAX_COLUMNS:,} columns.", "Keep the ones with text.")
    if nested:
        return
    for number, value in _rows_of_object(row, name):
        yield number or first_line, value


def _rows_of_object(row: Row, name: str) -> Iterator[tuple[int, Row]]:
    """The object as one row (numbered 0), or the rows that it holds as columns or under keys."""
    if (data := _split_rows(row)) is not None:
        for number, fields in enumerate(data, start=1):
            if len(fields) != len(row["columns"]):
                found = f"row {number} has {len(fields)} values where {len(row['columns'])} columns are named"
                raise DatasetError(f"{name}: {found}.", "Give every row one value per column.")
            yield number, dict(zip(row["columns"], fields, strict=True))
        return
    values = list(row.values())
    are_rows = len(values) > 1 or all(key.isdigit() for key in row)
    if values and are_rows and all(isinstance(value, dict) and value for value in values):
        if not all(key.isdigit() for value in values for key in value):
            yield from enumerate(values, start=1)  # {"a1": {"question": …}, "a2": {…}}
            return
        values = [list(value.values()) for value in values]  # {"question": {"0": …, "1": …}, "answer": {…}}
    if not _are_columns(row, values):
        yield 0, row
        return
    lengths = [len(column) for column in values]
    if len(set(lengths)) > 1:
        counts = listed(f"{column} {length}" for column, length in zip(row, lengths, strict=True))
        raise DatasetError(f"{name}: the columns have different numbers of values ({counts}).", "Give every column one value per row.")
    for number, fields in enumerate(zip(*values, strict=True), start=1):
        yield number, dict(zip(row, fields, strict=True))


def _are_columns(row: Row, values: list[Any]) -> bool:
    if not values or not all(isinstance(value, list) for value in values):
        return False
    if any(isinstance(item, dict) for name in LISTS_OF_ONE_ROW if name in row for item in row[name]):
        return False
    return not any(value and all(_is_turn(item) for item in value) for value in values)


def _is_turn(item: Any) -> bool:
    return isinstance(item, dict) and ("role" in item or "from" in item)


def _split_rows(row: Row) -> list[Any] | None:
    """The rows of pandas' orient "split": names of columns, and lists of values."""
    columns, data = row.get("columns"), row.get("data")
    if not set(row) <= SPLIT_KEYS or not isinstance(columns, list) or not isinstance(data, list) or not data:
        return None
    if not all(isinstance(name, str) for name in columns) or not all(isinstance(fields, list) for fields in data):
        return None
    return data


def parse_json(text: str) -> Any:
    """A JSON value inside a cell; raises ValueError, also on NaN."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
