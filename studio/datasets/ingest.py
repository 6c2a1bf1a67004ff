"""From a file to checked examples: reads, detects, maps, and gathers every problem. Writes nothing.

with open_ingest(path) as ingest:
    for line, result in ingest:      # result: the Example's JSON as bytes, or a Problem
    for batch in ingest.batches():   # or many at once
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.datasets import portions
from studio.datasets.batches import KEPT_PROBLEMS, Batch, Batcher
from studio.datasets.formats import Layout, columns_of, detect
from studio.datasets.json_records import JsonLines
from studio.datasets.reading import Source, open_source
from studio.datasets.records import Problem, Record, Row
from studio.errors import DatasetError

SAMPLE_ROWS = 100
SAMPLE_CHARS = 16 * 1024**2
MAX_HOPELESS = 10_000  # a file that begins with so many problems and no row is given up


@dataclass
class Problems:
    """The first problems of a file, and how many there are."""

    first: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        self.count += 1
        if len(self.first) < KEPT_PROBLEMS:
            self.first.append(problem)

    def as_json(self) -> list[dict[str, Any]]:
        return [problem.as_json() for problem in self.first]

    def error(self, name: str, fix: str = "") -> DatasetError:
        """One error for all of them: names the first and the count."""
        first = self.first[0]
        others = f" ({self.count:,} rows have problems.)" if self.count > 1 else ""
        message = f"{name}, line {first.line}: {first.problem}{others}"
        return DatasetError(message, f"{first.fix} {fix}".strip(), problems=self.as_json(), count=self.count)


class Ingest:
    """The examples of one opened file, once."""

    def __init__(self, source: Source, layout: Layout, columns: list[str], sample: list[Record]) -> None:
        self.source = source
        self.layout = layout
        self.columns = columns
        self._sample = sample  # the file's first records, read already
        self._batcher = Batcher(layout)

    def __iter__(self) -> Iterator[tuple[int, bytes | Problem]]:
        for record in itertools.chain(self._sample, self.source.records):
            yield from self._batcher.results(*record)

    def batches(self) -> Iterator[Batch]:
        """The same in batches of bounded size, which is several times as fast for many small rows."""
        yield from self._batcher.of_records(self._sample)
        rest = self.source.records
        if not isinstance(rest, JsonLines):
            yield from self._batcher.of_records(rest)
        elif portions.are_worth(rest):
            yield from portions.batches(rest, self._batcher)
        else:
            yield from self._batcher.of_lines(rest)


@contextmanager
def open_ingest(
    path: Path,
    filename: str | None = None,
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    scratch: Path | None = None,
) -> Iterator[Ingest]:
    """Open and detect. Raises DatasetError when the file can't be read at all or fits no format."""
    with open_source(path, filename, scratch) as source:
        sample, rows = _sample(source)
        try:
            columns = columns_of(rows)
            layout = detect(columns, format, mapping)
        except DatasetError as exc:
            raise DatasetError(f"{source.name}: {exc.message}", exc.fix, **exc.details) from None
        yield Ingest(source, layout, list(columns), sample)


def _sample(source: Source) -> tuple[list[Record], list[Row]]:
    """The first records, to be read again, and the rows among them."""
    records: list[Record] = []
    rows: list[Row] = []
    problems = Problems()
    chars = 0
    for line, row in source.records:
        records.append((line, row))
        if isinstance(row, Problem):
            problems.add(row)
        else:
            rows.append(row)
            chars += sum(len(value) if isinstance(value, str) else 1000 for value in row.values())
        if len(rows) >= SAMPLE_ROWS or chars > SAMPLE_CHARS or (not rows and problems.count >= MAX_HOPELESS):
            break
    if rows:
        return records, rows
    if problems.count:
        raise problems.error(source.name)
    raise DatasetError(f"{source.name} has no rows.", "Choose a file with at least one row.")
