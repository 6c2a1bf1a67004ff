"""What readers of every file type share: rows, problems, limits, and lines of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_LINE_BYTES = 32 * 1024**2
MAX_WIDE_BYTES = MAX_LINE_BYTES // 4
WIDE = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4", b"\\ud", b"\\uD")  # beginnings of such characters, as they are or escaped in JSON
MAX_COLUMNS = 10_000
SAMPLE_BYTES = 1024**2  # of a file's beginning, on which decisions are made
CHUNK_BYTES = 1024**2
BLOCK_BYTES = 64 * 1024  # of whole lines: what is made of so many is freed without giving pages back to the system each time

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


def lines_of(file: Any) -> Iterator[tuple[int, bytes | Problem]]:
    """Lines without their ends; one that is too long is skipped as a problem."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if is_too_long(line):
            if not line.endswith(b"\n"):
                skip_line(file)
            yield number, too_long(number, line)
        else:
            yield number, line


def is_too_long(line: bytes) -> bool:
    """In bytes, or in memory: one character outside of the basic plane makes every other take four bytes."""
    if len(line) > MAX_LINE_BYTES:
        return not line.endswith(b"\n") or len(line) > MAX_LINE_BYTES + 1
    return len(line) > MAX_WIDE_BYTES and any(mark in line for mark in WIDE)


def skip_line(file: Any) -> None:
    """Read on behind the end of the line."""
    while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
        pass


def too_long(number: int, line: bytes) -> Problem:
    is_wide = len(line) <= MAX_LINE_BYTES
    megabytes = (MAX_WIDE_BYTES if is_wide else MAX_LINE_BYTES) // 1024**2
    why = ", and holds characters such as emoji, which make it four times as long in memory" if is_wide else ""
    return Problem(number, f"The line is longer than {megabytes} MB{why}.", "Put one row on each line, or leave this row out.")
