"""Rows of YAML: a list of mappings, several documents, or a mapping with such a list under a key like `data`.

Read event by event, so memory stays flat and nothing is built of what a row does not need. Plain words stay the texts they are (`no`,
dates, version numbers); only null, true, false and numbers in JSON's spelling are values. Aliases and tags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from studio.datasets import records
from studio.datasets.json_records import NESTED_KEYS, as_row
from studio.datasets.records import Problem, Record, Row

MAX_VALUES = 500_000  # of one row
MAX_DEPTH = 100
NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,300})(?P<part>(?:\.\d{1,300})?(?:[eE][-+]?\d{1,3})?)")
WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "false": False}
TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")


class _UnreadableError(ValueError):
    """Why the rest of the file can't be read."""


class _Bounded:
    """The file; refuses to read on when one row takes more than a line may have."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.taken = 0

    def read(self, size: int) -> bytes:
        self.taken += size
        if self.taken > records.MAX_LINE_BYTES:
            raise _UnreadableError(f"a row is longer than {records.MAX_LINE_BYTES // 1024**2} MB")
        block: bytes = self._file.read(size)
        return block


class _Events:
    """Values of the events of a file; what is wrong with a value is in `fault` until the next row."""

    def __init__(self, file: _Bounded) -> None:
        source: Any = file
        self._events = yaml.parse(source, Loader=yaml.CSafeLoader)
        self.fault = ""
        self.left = MAX_VALUES

    def next(self) -> Any:
        return next(self._events)

    def value(self, event: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            raise _UnreadableError("a row has too many values, or is nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            self.fault = self.fault or f"The alias *{event.anchor} stands for another value"
            return None
        if event.tag not in TEXT_TAGS:
            self.fault = self.fault or f"The tag {event.tag[:80]} asks for more than text"
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(item := self.next(), yaml.SequenceEndEvent):
                items.append(self.value(item, depth + 1))
            return items
        return self._mapping(depth)

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(key := self.next(), yaml.MappingEndEvent):
            name = self.value(key, depth + 1)
            text = key.value if isinstance(key, yaml.ScalarEvent) else repr(name)
            if text in found:
                self.fault = self.fault or f"The key {text[:80]!r} stands twice in one mapping"
            found[text] = self.value(self.next(), depth + 1)
        return found

    def row(self, event: Any, bounded: _Bounded) -> Record:
        """The row that begins with `event`."""
        self.fault, self.left, bounded.taken = "", MAX_VALUES, 0
        line = event.start_mark.line + 1
        value = self.value(event)
        if self.fault:
            return line, Problem(line, f"{self.fault}.", "Write the value itself, or leave the row out.")
        return line, as_row(line, value)


def yaml_records(file: Any, name: str, _sample: bytes) -> Iterator[Record]:
    bounded = _Bounded(file)
    events = _Events(bounded)
    line = 1
    try:
        for record in _rows(events, bounded):
            line = record[0]
            yield record
    except (_UnreadableError, yaml.YAMLError) as exc:
        mark = getattr(exc, "problem_mark", None)
        if mark is not None:
            line = mark.line + 1
        reason = getattr(exc, "problem", None) or str(exc).partition("\n")[0]
        fix = "Correct it there, or save the rows as JSON lines (.jsonl)."
        yield line, Problem(line, f"It is no readable YAML ({reason}), so the rest of {name} can't be read.", fix)


def _rows(events: _Events, bounded: _Bounded) -> Iterator[Record]:
    """Rows of every document."""
    while not isinstance(event := events.next(), yaml.StreamEndEvent):
        if isinstance(event, yaml.SequenceStartEvent):
            yield from _items(events, bounded)
        elif isinstance(event, yaml.MappingStartEvent):
            start: Any = event.start_mark
            yield from _members(events, start.line + 1, bounded)
        elif isinstance(event, yaml.NodeEvent):
            yield events.row(event, bounded)


def _items(events: _Events, bounded: _Bounded) -> Iterator[Record]:
    while not isinstance(item := events.next(), yaml.SequenceEndEvent):
        yield events.row(item, bounded)


def _members(events: _Events, line: int, bounded: _Bounded) -> Iterator[Record]:
    """One row, or an object around the list of rows."""
    row: Row = {}
    fault, nested = "", False
    while not isinstance(key := events.next(), yaml.MappingEndEvent):
        value = events.next()
        name = getattr(key, "value", None)
        if name in NESTED_KEYS and isinstance(value, yaml.SequenceStartEvent):
            nested = True
            yield from _items(events, bounded)
            continue
        if name is None or name in row:
            fault = fault or f"The key {name!r} is no text, or stands twice in one mapping"
        row[str(name)] = events.value(value)
        fault = fault or events.fault
    if nested:
        return
    if fault:
        yield line, Problem(line, f"{fault}.", "Write the value itself, or leave the row out.")
    else:
        yield line, row


def _scalar(event: Any) -> Any:
    """JSON's values as JSON spells them; everything else is text, so that `no` and `1.10` stay what is written."""
    text: str = event.value
    if not event.implicit[0] or event.style:
        return text
    if text in WORDS:
        return WORDS[text]
    if (found := NUMBER.fullmatch(text)) and not found["part"]:
        return int(text)
    if found and str(float(text)) == text:
        return float(text)
    return text
