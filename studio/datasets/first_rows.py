"""The first rows of a file as a table, and what its columns may be. Reads no further than detection does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studio.datasets.guessing import Guess, guess, what_it_holds
from studio.datasets.ingest import first_records
from studio.datasets.reading import open_source
from studio.datasets.records import Problem, Record, Row
from studio.datasets.shapes import Columns, columns_of
from studio.datasets.telling import changes_meaning, meaning
from studio.errors import DatasetError
from studio.records import FirstRows, TableColumn, TableRow

MAX_COLUMNS_SHOWN = 60
MAX_NAMES = 500  # of columns that are not shown
MAX_CELL_CHARS = 300


def first_rows(path: Path, filename: str | None, scratch: Path, limit: int) -> FirstRows:
    """Raises DatasetError when the file can't be read at all; columns that fit no format are no error."""
    with open_source(path, filename, scratch) as source:
        records, rows = first_records(source)
        try:
            columns = columns_of(rows)
        except DatasetError as exc:
            raise DatasetError(f"{source.name}: {exc.message}", exc.fix) from None
    made = guess(columns, rows)
    shown = _shown(columns, made)
    return FirstRows(
        columns=[
            TableColumn(
                name=name,
                holds=what_it_holds(columns[name], [row.get(name) for row in rows]),
                filled=sum(row.get(name) not in (None, "") for row in rows),
                reason=made.reasons[name],
                says=_says(name, rows),
            )
            for name in shown
        ],
        more_columns=[name for name in columns if name not in set(shown)][:MAX_NAMES],
        rows=[_row(record, shown) for record in records[:limit]],
        looked_at=len(rows),
        format=made.format,
        mapping=made.mapping,
        is_certain=made.is_certain,
        refusal=made.refusal,
    )


def _says(column: str, rows: Iterable[Row]) -> str | None:
    """What the column says of how rows are meant; None where it says nothing that could be lost."""
    found = meaning(column)
    if found is None or not any(changes_meaning(found, row.get(column)) for row in rows):
        return None
    return found.says


def _shown(columns: Columns, made: Guess) -> list[str]:
    """In their order; where there are too many, those with a role or a known meaning are among them."""
    mapped = [name for name in columns if name in made.mapping.values() or meaning(name)][:MAX_COLUMNS_SHOWN]
    others = [name for name in columns if name not in mapped]
    chosen = {*mapped, *others[: max(0, MAX_COLUMNS_SHOWN - len(mapped))]}
    return [name for name in columns if name in chosen]


def _row(record: Record, columns: Iterable[str]) -> TableRow:
    line, row = record
    if isinstance(row, Problem):
        return TableRow(line=line, cells=[], problem=row.problem)
    return TableRow(line=line, cells=[_cell(row.get(name)) for name in columns])


def _cell(value: Any) -> str:
    """A value as a table shows it: texts as they are, everything else as JSON."""
    if value is None:
        return ""
    text = value
    if not isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > MAX_CELL_CHARS:
        return text[:MAX_CELL_CHARS] + "…"
    return str(text)
