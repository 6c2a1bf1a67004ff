"""Apply the fixes of a report: rows are taken out, or their texts changed; every other row stays as it is, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from studio.datasets.report.checks import BY_NAME
from studio.datasets.report.rows import with_strings


@dataclass
class Fixed:
    """What became of the rows."""

    rows: int = 0
    dropped: int = 0
    changed: int = 0


def write_fixed(source: Path, target: Path, faults: Mapping[str, Sequence[int]]) -> Fixed:
    """Write `source` to `target` without the faults: check -> its rows, which count from 1."""
    gone = {row for check, rows in faults.items() if not BY_NAME[check].changes_rows for row in rows}
    changes: dict[int, list[Callable[[str], str]]] = {}
    for check, rows in faults.items():
        if BY_NAME[check].changes_rows:
            for row in rows:
                changes.setdefault(row, []).append(_change(check))
    fixed = Fixed()
    with source.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines, start=1):
            if number in gone:
                fixed.dropped += 1
                continue
            if number in changes:
                line = changed(line, changes[number])
                fixed.changed += 1
            out.write(line)
            fixed.rows += 1
    return fixed


def changed(line: bytes, changes: Sequence[Callable[[str], str]]) -> bytes:
    """A row with every text of it changed."""
    row: Any = orjson.loads(line)
    for change in changes:
        row = with_strings(row, change)
    return orjson.dumps(row) + b"\n"


def _change(check: str) -> Callable[[str], str]:
    if check == "pii":
        from studio.datasets.report.personal import masked  # reads what is known of the world's phone numbers

        return masked
    from studio.datasets.report.texts import cleaned

    return cleaned
