"""Records to examples, many at once: plain blocks of JSON lines the quick way, everything else row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from studio.datasets.blocks import BlockMapper, block_mapper
from studio.datasets.formats import Layout
from studio.datasets.json_records import JsonLines, json_line
from studio.datasets.mapping import RowError, converter
from studio.datasets.records import BLOCK_BYTES, Problem, Record, Row

KEPT_PROBLEMS = 100
SMALL_BLOCK_BYTES = 4096
LARGE_BLOCK_BYTES = 1024**2  # a row of such a size goes the general way, which holds fewer copies of it


@dataclass(slots=True)
class Batch:
    """Examples of neighbouring rows as JSON lines, their number, and the problems of the rows among them."""

    lines: bytes = b""
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)


class Batcher:
    """Makes batches of bounded size of rows with one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._convert = converter(layout)
        self._mapper = block_mapper(layout)

    def of_lines(self, lines: JsonLines) -> Iterator[Batch]:
        """What is left of a file of JSON lines."""
        if self._mapper is None:
            yield from self.of_records(lines)
            return
        for first, block in lines.blocks():
            if isinstance(block, Problem):
                yield Batch(problems=[block])
            else:
                yield from self._mapped(self._mapper, first, block)

    def _mapped(self, mapper: BlockMapper, first: int, block: bytes) -> Iterator[Batch]:
        """Quickly where that works; else by halves, so that one odd row costs its neighbours nothing."""
        quick = mapper.lines(block) if len(block) < LARGE_BLOCK_BYTES else None
        middle = block.rfind(b"\n", 0, len(block) // 2) + 1
        if quick is not None:
            yield Batch(*quick)
        elif len(block) > SMALL_BLOCK_BYTES and middle:
            yield from self._mapped(mapper, first, block[:middle])
            yield from self._mapped(mapper, first + block.count(b"\n", 0, middle), block[middle:])
        else:
            numbered = ((number, json_line(number, line)) for number, line in enumerate(block.split(b"\n"), start=first))
            yield from self.of_records((number, row) for number, row in numbered if row is not None)

    def of_records(self, records: Iterable[Record]) -> Iterator[Batch]:
        """Row by row."""
        lines: list[bytes] = []
        problems: list[Problem] = []
        size = 0
        for record in records:
            for _, result in self.results(*record):
                if isinstance(result, Problem):
                    problems.append(result)
                else:
                    lines.append(result)
                    size += len(result)
            if size > BLOCK_BYTES or len(problems) > KEPT_PROBLEMS:
                yield Batch(b"\n".join(lines) + b"\n" * bool(lines), len(lines), problems)
                lines, problems, size = [], [], 0
        if lines or problems:
            yield Batch(b"\n".join(lines) + b"\n" * bool(lines), len(lines), problems)

    def results(self, line: int, row: Row | Problem) -> list[tuple[int, bytes | Problem]]:
        """The examples of one row, or its problem."""
        if isinstance(row, Problem):
            return [(line, row)]
        try:
            return [(line, orjson.dumps(example)) for example in self._convert(row)]
        except RowError as exc:
            return [(line, Problem(line, exc.problem, exc.fix))]
        except (TypeError, orjson.JSONEncodeError):
            return [(line, Problem(line, *_unwritable(row)))]


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
