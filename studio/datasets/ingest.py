"""From a file to checked examples: reads, detects, maps, and gathers every problem. Writes nothing.

with open_ingest(path) as ingest:
    for line, result in ingest:      # result: the Example's JSON as bytes, or a Problem
    for batch in ingest.batches():   # or many at once
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from studio.datasets.blocks import BlockMapper, block_mapper
from studio.datasets.detecting import detect
from studio.datasets.formats import Layout
from studio.datasets.guessing import suggested_mapping
from studio.datasets.json_records import JsonLines, json_bytes, json_line
from studio.datasets.reading import Source, open_source
from studio.datasets.records import BLOCK_BYTES, Problem, Record, Row
from studio.datasets.row_errors import RowError
from studio.datasets.shapes import Columns, columns_of
from studio.datasets.usage import ColumnUsage, check_layout
from studio.errors import DatasetError
from studio.records import RowProblem

SAMPLE_ROWS = 100
SAMPLE_CHARS = 16 * 1024**2
MAX_HOPELESS = 10_000  # a file that begins with so many problems and no row is given up
KEPT_PROBLEMS = 100
SMALL_BLOCK_BYTES = 4096
ODD_VALUE = 1000  # counted for a value that is no text
LARGE_BLOCK_BYTES = 1024**2  # a row of such a size goes the general way, which holds fewer copies of it


@dataclass
class Problems:
    """The first problems of a file, and how many there are."""

    first: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, problem: Problem) -> None:
        self.count += 1
        if len(self.first) < KEPT_PROBLEMS:
            self.first.append(problem)

    def records(self) -> list[RowProblem]:
        return [RowProblem(**problem.as_json()) for problem in self.first]

    def error(self, name: str, fix: str = "") -> DatasetError:
        """One error for all of them: names the first and the count."""
        first = self.first[0]
        others = f" ({self.count:,} rows have problems.)" * (self.count > 1)
        message = f"{name}, line {first.line}: {first.problem}{others}"
        return DatasetError(message, f"{first.fix} {fix}".strip(), problems=[problem.as_json() for problem in self.first], count=self.count)


@dataclass(slots=True)
class ExampleBatch:
    """Examples of neighbouring rows as JSON lines, their number, and the problems of the rows among them."""

    lines: bytes = b""
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)


class Ingest:
    """The examples of one opened file, once."""

    def __init__(self, source: Source, layout: Layout, columns: list[str], sample: list[Record], usage: ColumnUsage) -> None:
        self.source = source
        self.layout = layout
        self.columns = columns
        self.usage = usage  # of the rows that were read so far
        self._sample = sample  # the file's first records, read already
        self._quick: tuple[int, BlockMapper | None] | None = None

    def __iter__(self) -> Iterator[tuple[int, bytes | Problem]]:
        for record in itertools.chain(self._sample, self.source.records):
            yield from self._results(*record)

    def notes(self) -> list[str]:
        """What was guessed or left out on the way, in sentences."""
        guessed = list(self.source.notes)
        if self.layout.format.note:
            guessed.append(self.layout.format.note)
        if self.layout.format.name == "preference" and "prompt" not in self.layout.mapping:
            guessed.append("There is no column of prompts: what both answers of a row begin with is its prompt.")
        return guessed

    def batches(self) -> Iterator[ExampleBatch]:
        """The same in batches of bounded size, which is several times as fast for many small rows."""
        yield from self._gathered(self._sample)
        if not isinstance(self.source.records, JsonLines):
            yield from self._quickly(self.source.records)
            return
        for first, block in self.source.records.blocks():
            mapper = self._mapper()
            if isinstance(block, Problem):
                yield ExampleBatch(problems=[block])
            elif mapper is None:
                numbered = ((number, json_line(number, line)) for number, line in enumerate(block.split(b"\n"), start=first))
                yield from self._gathered((number, row) for number, row in numbered if row is not None)
            else:
                yield from self._mapped(mapper, first, block)

    def _mapper(self) -> BlockMapper | None:
        """The quick way for the columns that are known by now."""
        if self._quick is None or self._quick[0] != len(self.usage.known):
            self._quick = len(self.usage.known), block_mapper(self.layout, self.usage)
        return self._quick[1]

    def _quickly(self, records: Iterable[Record]) -> Iterator[ExampleBatch]:
        if self._mapper() is None:
            yield from self._gathered(records)
            return
        for some in _grouped(records):
            mapper = self._mapper()
            quick = None
            if mapper is not None:
                quick = mapper.examples([row for _, row in some])
            if quick is None:
                yield from self._gathered(some)
            else:
                yield ExampleBatch(quick, len(some))

    def _mapped(self, mapper: BlockMapper, first: int, block: bytes) -> Iterator[ExampleBatch]:
        """Quickly where that works; else by halves, so that one odd row costs its neighbours nothing."""
        quick = None
        if len(block) < LARGE_BLOCK_BYTES:
            quick = mapper.lines(block)
        middle = block.rfind(b"\n", 0, len(block) // 2) + 1
        if quick is not None:
            yield ExampleBatch(*quick)
        elif len(block) > SMALL_BLOCK_BYTES and middle:
            yield from self._mapped(mapper, first, block[:middle])
            yield from self._mapped(mapper, first + block.count(b"\n", 0, middle), block[middle:])
        else:
            numbered = ((number, json_line(number, line)) for number, line in enumerate(block.split(b"\n"), start=first))
            yield from self._gathered((number, row) for number, row in numbered if row is not None)

    def _gathered(self, records: Iterable[Record]) -> Iterator[ExampleBatch]:
        lines: list[bytes] = []
        problems: list[Problem] = []
        size = 0
        for record in records:
            for _, result in self._results(*record):
                if isinstance(result, Problem):
                    problems.append(result)
                else:
                    lines.append(result)
                    size += len(result)
            if size > BLOCK_BYTES or len(problems) > KEPT_PROBLEMS:
                yield ExampleBatch(b"\n".join(lines) + b"\n" * bool(lines), len(lines), problems)
                lines, problems, size = [], [], 0
        if lines or problems:
            yield ExampleBatch(b"\n".join(lines) + b"\n" * bool(lines), len(lines), problems)

    def _results(self, line: int, row: Row | Problem) -> list[tuple[int, bytes | Problem]]:
        """The examples of one row, or its problem."""
        if isinstance(row, Problem):
            return [(line, row)]
        try:
            self.usage.see(row)
            return [(line, json_bytes(example)) for example in self.layout.examples(row)]
        except RowError as exc:
            return [(line, Problem(line, exc.problem, exc.fix))]
        except (TypeError, ValueError, RecursionError):
            return [(line, Problem(line, *_unwritable(row)))]


def _length(row: object) -> int:
    """About how many characters a row holds; counted for every row, so without looking into its values."""
    if type(row) is not dict:
        return ODD_VALUE
    return sum([len(value) if type(value) is str else ODD_VALUE for value in row.values()])


def _grouped(records: Iterable[Record]) -> Iterator[list[Record]]:
    """So many at once as are small together."""
    some: list[Record] = []
    size = 0
    for record in records:
        some.append(record)
        size += _length(record[1])
        if size > BLOCK_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


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
        sample, rows = first_records(source)
        try:
            columns = columns_of(rows)
            layout = _layout(columns, rows, format, mapping)
            if not format:
                check_layout(layout, rows)
        except DatasetError as exc:
            raise DatasetError(f"{source.name}: {exc.message}", exc.fix, **exc.details) from None
        usage = ColumnUsage(layout, is_chosen=bool(format))
        usage.learn(columns)
        yield Ingest(source, layout, list(columns), sample, usage)


def _layout(columns: Columns, rows: list[Row], format: str | None, mapping: Mapping[str, str] | None) -> Layout:
    """As detected. Where nothing fits, the refusal names the mapping that the columns' names suggest."""
    try:
        return detect(columns, format, mapping)
    except DatasetError as exc:
        suggested = ""
        if not format and not mapping:
            suggested = suggested_mapping(columns, rows)
        raise DatasetError(exc.message, suggested or exc.fix, **exc.details) from None


def first_records(source: Source) -> tuple[list[Record], list[Row]]:
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
            chars += sum(len(value) if isinstance(value, str) else ODD_VALUE for value in row.values())
        if len(rows) >= SAMPLE_ROWS or chars > SAMPLE_CHARS or (not rows and problems.count >= MAX_HOPELESS):
            break
    if rows:
        return records, rows
    if problems.count:
        raise problems.error(source.name)
    raise DatasetError(f"{source.name} has no rows.", "Choose a file with at least one row.")


def _unwritable(row: Row) -> tuple[str, str]:
    """Why an example can't be written as JSON."""
    try:
        orjson.dumps(row, default=str)
    except (TypeError, orjson.JSONEncodeError) as exc:
        if "surrogate" in str(exc):
            return "The text holds bytes that are no UTF-8, or half of a surrogate pair.", "Save the file as UTF-8, or leave the row out."
        if "ecursion" in str(exc):
            return "The row is nested too deeply.", "Flatten it, or leave the row out."
    return "The row holds a value that JSON can't write.", "Write it as text, or leave the row out."
