"""Rows of plain text: paragraphs between blank lines; a file without blank lines gives one document per line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from studio.datasets import records
from studio.datasets.records import Problem, Record, Row, lines_of


def text_records(file: Any, _name: str, sample: bytes) -> Iterator[Record]:
    by_line = re.search(rb"\n[ \t\r]*\n", sample.strip()) is None
    paragraph: list[bytes] = []
    start = size = 0
    for number, line in lines_of(file):
        if isinstance(line, Problem):
            yield number, line
            continue
        size += len(line)
        if line.strip():
            start = start * bool(paragraph) or number
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
