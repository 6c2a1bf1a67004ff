"""What readers of every file type share: rows, problems, limits, and lines of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_LINE_BYTES = 32 * 1024**2
MAX_COLUMNS = 10_000
SAMPLE_BYTES = 1024**2  # of a file's beginning, on which decisions are made
CHUNK_BYTES = 1024**2

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
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            megabytes = MAX_LINE_BYTES // 1024**2
            yield number, Problem(number, f"The line is longer than {megabytes} MB.", "Put one row on each line, or leave this row out.")
        else:
            yield number, line
