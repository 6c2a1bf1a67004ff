"""Apply the fixes of a report: rows are taken out, or changed; every other row stays as it is, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.datasets.json_records import json_bytes, json_value
from studio.datasets.report.checks import BY_NAME
from studio.datasets.report.control_tokens import ControlTokens
from studio.datasets.report.placeholders import filled
from studio.datasets.report.rows import Row, with_strings
from studio.records import FixAction

Change = Callable[[Row], Row | None]  # None: the row is left out


@dataclass
class Fixed:
    """What became of the rows."""

    rows: int = 0
    dropped: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Means:
    """What some fixes need: the control tokens to break up, and values by the key of a placeholder."""

    control: ControlTokens = field(default_factory=ControlTokens)
    values: Mapping[str, str] = field(default_factory=dict)


def write_fixed(source: Path, target: Path, faults: Mapping[str, Sequence[int]], means: Means | None = None) -> Fixed:
    """Write `source` to `target` without the faults: check -> its rows, which count from 1."""
    changes: dict[int, list[Change]] = {}
    for check, rows in faults.items():
        change = _change(check, means or Means())
        for row in rows:
            changes.setdefault(row, []).append(change)
    fixed = Fixed()
    with source.open("rb") as lines, target.open("wb") as out:
        for number, line in enumerate(lines, start=1):
            made: bytes | None = line
            if number in changes:
                made = changed(line, changes[number])
            if made is None:
                fixed.dropped += 1
                continue
            fixed.changed += made is not line
            out.write(made)
            fixed.rows += 1
    return fixed


def changed(line: bytes, changes: Sequence[Change]) -> bytes | None:
    """A row after every change; None where one of them leaves it out."""
    row: Row | None = json_value(line)
    for change in changes:
        row = row and change(row)
    return json_bytes(row) + b"\n" if row else None


def _change(check: str, means: Means) -> Change:
    action = BY_NAME[check].action
    if action == FixAction.MASK:
        from studio.datasets.report.personal import masked  # reads what is known of the world's phone numbers

        return _of_texts(masked)
    if action == FixAction.CLEAN:
        from studio.datasets.report.texts import cleaned

        return _of_texts(cleaned)
    if action == FixAction.BREAK_UP:
        return _of_texts(means.control.broken_up)
    if action == FixAction.FILL and means.values:
        return lambda row: _filled(row, means.values)
    if action == FixAction.IMITATE:
        return imitated
    return lambda row: None


def _filled(row: Row, values: Mapping[str, str]) -> Row:
    """Tools stay as they are: braces in a schema are no placeholders."""
    said = {key: value for key, value in row.items() if key != "tools"}
    return {**row, **with_strings(said, lambda text: filled(text, values))}


def imitated(row: Row) -> Row | None:
    """A marked answer as a row to imitate; None where it is marked bad."""
    if row.get("label") is not True:
        return None
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": completion}
    return {"messages": [*_turns(prompt, "user"), *_turns(completion, "assistant")], **_tools(row)}


def _turns(said: Any, role: str) -> list[Any]:
    return [{"role": role, "content": said}] if isinstance(said, str) else list(said or [])


def _tools(row: Row) -> Row:
    return {key: row[key] for key in ("tools",) if key in row}


def _of_texts(change: Callable[[str], str]) -> Change:
    return lambda row: with_strings(row, change)
