"""Make the report of a file of rows: scan it in parts, on every core, then look at rows beside each other.

Knows files and processes; no database.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from studio.datasets import lengths
from studio.datasets.report import likeness, scan, summary
from studio.datasets.report.child import Progress
from studio.datasets.report.rows import Row, answers_of, messages_of
from studio.datasets.report.scan import Excerpt, ScannedPart, ScanOptions, shortened
from studio.datasets.report.table import RowTable
from studio.datasets.report.wanted import Wanted

PART_ROWS, PART_BYTES = 2000, 2 * 1024**2
SMALL_ROWS, SMALL_BYTES = 3000, 3 * 1024**2  # not worth another process
LANGUAGE_ROWS = 10_000
COMMON_ROWS, COMMON_BYTES = 2000, 4 * 1024**2
MAX_PROCESSES = 8


def make(wanted: Wanted, progress: Progress) -> dict[str, Any]:
    """The report as studio.services.curation promises it, and under "all_rows" every row of each finding."""
    began = time.monotonic()
    with RowTable(Path(wanted.path)) as table:
        count = len(table)
        every = 1 if wanted.every_language else max(1, -(-count // LANGUAGE_ROWS))
        part = _seen(table, wanted, every, progress)
    rows = {check: sorted(set(found)) for check, found in part.rows.items()}
    unit = "tokens" if wanted.model_folder else "words"
    progress("Done", 1.0)
    return {
        "rows": count,
        "findings": summary.findings(rows, part.excerpts, part.names),
        "lengths": {"unit": unit, **lengths.summary(part.lengths).model_dump()},
        "answers": {"unit": unit, **lengths.summary(part.answer_lengths).model_dump()},
        "languages": summary.shares(part.languages),
        "checked": count,
        **({"sampled": {"language_mix": -(-count // every)}} if every > 1 else {}),
        "seconds": round(time.monotonic() - began, 2),
        "all_rows": rows,
    }


def _seen(table: RowTable, wanted: Wanted, every: int, progress: Progress) -> ScannedPart:
    """What is in each row, and what only shows when rows are looked at beside each other."""
    reading = ScanOptions(wanted.kind, wanted.model_folder, wanted.chat_template, wanted.max_length, every, wanted.date)
    common = common_of(table)
    part = scanned(table, reading, common, lambda share: progress("Reading rows", 0.8 * share))
    progress("Comparing rows", 0.8)
    _add_repetitions(part, table, common)
    for path in wanted.against:
        progress("Comparing with the other dataset", 0.9)
        with RowTable(Path(path)) as other:
            _add_leakage(part, table, other)
    _add_outliers(part, table)
    return part


def common_of(*tables: RowTable) -> likeness.Hashes:
    """Shingles that many rows share, by an even sample."""
    return likeness.common_shingles([likeness.said(table.row(row)) for table in tables for row in table.sample(COMMON_ROWS, COMMON_BYTES)])


def _add_repetitions(part: ScannedPart, table: RowTable, common: likeness.Hashes) -> None:
    firsts = table.repeats()
    rows = np.arange(len(table))
    again = rows[firsts != rows]
    part.rows["exact_duplicates"] = (again + 1).tolist()
    part.excerpts["exact_duplicates"] = _beside(table, {int(row): int(firsts[row]) for row in again[: scan.EXAMPLES]})
    neighbours = likeness.Neighbours(part.matrix, part.numbers, rows[firsts == rows])
    found = likeness.repetitions(neighbours, likeness.Contents(table.row, common))
    part.rows["near_duplicates"] = [row + 1 for row in found]
    part.excerpts["near_duplicates"] = _beside(table, found)


def _add_leakage(part: ScannedPart, table: RowTable, other: RowTable) -> None:
    common = common_of(table, other)  # as if they were one dataset, which the two sides of a split were
    matrix, numbers = signatures_of((other, table), common)
    count = len(other)
    same = table.also_in(other)
    rows = np.concatenate([np.arange(count), count + np.flatnonzero(~same)])

    def read(row: int) -> Row:
        return other.row(row) if row < count else table.row(row - count)

    found = likeness.matches(likeness.Neighbours(matrix, numbers, rows), likeness.Contents(read, common), count)
    leaked = sorted({*(np.flatnonzero(same | _asked_there(table, other)) + 1).tolist(), *(row - count + 1 for row in found)})
    part.rows.setdefault("leakage", []).extend(leaked)
    part.excerpts.setdefault("leakage", []).extend(_shown(table, leaked))


def _asked_there(table: RowTable, other: RowTable) -> npt.NDArray[np.bool_]:
    """For each row whether the other table asks the same, whatever the answers are; a question that many rows ask is a template."""
    mine, theirs = asked_of(table), asked_of(other)
    return np.isin(mine, np.intersect1d(theirs, _seldom(np.concatenate([mine, theirs]))))


def _seldom(asked: likeness.Hashes) -> likeness.Hashes:
    found, counts = np.unique(asked, return_counts=True)
    return found[(found != 0) & (counts <= likeness.COMMON_ROWS)]


def asked_of(table: RowTable) -> likeness.Hashes:
    """likeness.asked of every row."""
    chunks = (table.lines(start, stop) for start, stop in table.chunks(PART_ROWS, PART_BYTES))
    return np.array([likeness.asked(orjson.loads(line)) for lines in chunks for line in lines], np.uint64)


def _add_outliers(part: ScannedPart, table: RowTable) -> None:
    long = part.rows["very_long"] = summary.very_long(part.sizes)
    part.excerpts["very_long"] = _shown(table, long, lambda row: f"{part.sizes[row - 1]:,} characters: ")
    words = part.rows["one_token_answers"] = summary.one_word_answers(part)
    part.excerpts["one_token_answers"] = _shown(table, words, lambda row: f"{answers_of(table.row(row - 1))[0].strip()} ← ")
    alike = part.rows["single_class"] = summary.single_class(part)
    part.excerpts["single_class"] = _shown(table, alike, lambda row: "marked good: " if part.marks[True] else "marked bad: ")
    languages = summary.other_languages(part.languages)
    part.rows["language_mix"] = list(languages)
    part.excerpts["language_mix"] = _shown(table, list(languages), lambda row: f"{languages[row]}: ")


def _shown(table: RowTable, rows: Sequence[int], before: Callable[[int], str] = lambda row: "") -> list[Excerpt]:
    """The first few rows (from 1) with an excerpt each."""
    return [(row, shortened(before(row) + " ".join(messages_of(table.row(row - 1))))) for row in rows[: scan.EXAMPLES]]


def _beside(table: RowTable, pairs: dict[int, int]) -> list[Excerpt]:
    return _shown(table, [row + 1 for row in list(pairs)[: scan.EXAMPLES]], lambda row: f"like row {pairs[row - 1] + 1}: ")


# the scan, in one process or several


def scanned(table: RowTable, reading: ScanOptions, common: likeness.Hashes, progress: Callable[[float], None]) -> ScannedPart:
    ranges = list(table.chunks(PART_ROWS, PART_BYTES))
    if not ranges:
        raise ValueError("there are no rows")
    small = len(table) <= SMALL_ROWS and table.path.stat().st_size <= SMALL_BYTES
    processes = min(len(ranges), MAX_PROCESSES, available_cores())
    if small or processes == 1:
        found: Iterator[ScannedPart] = (scan.scan(table.lines(start, stop), start + 1, reading, common) for start, stop in ranges)
    else:
        found = _in_processes(processes, table, ranges, reading, common)
    matrix, numbers = _stack(len(table))
    parts: list[ScannedPart] = []
    for part, (start, stop) in zip(found, ranges, strict=True):
        matrix[start:stop], numbers[start:stop] = part.matrix, part.numbers
        part.matrix = part.numbers = None
        parts.append(part)
        progress(stop / len(table))
    whole = scan.joined(parts)
    whole.matrix, whole.numbers = matrix, numbers
    return whole


def _stack(rows: int) -> tuple[npt.NDArray[np.uint32], likeness.Hashes]:
    """Room for so many signatures, on the disk: half a kilobyte each."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint32, "w+", shape=(rows, likeness.SLOTS)), np.zeros(rows, np.uint64)


def _in_processes(
    processes: int, table: RowTable, ranges: list[tuple[int, int]], reading: ScanOptions, common: likeness.Hashes
) -> Iterator[ScannedPart]:
    """Parts in their order; only a few are under way at once, so that memory stays flat."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        done: dict[int, ScannedPart] = {}
        under_way: dict[Future[ScannedPart], int] = {}
        sent, given = 0, 0
        while given < len(ranges):
            while sent < len(ranges) and len(under_way) < 2 * processes:
                start, stop = ranges[sent]
                under_way[pool.submit(scan.scan, table.lines(start, stop), start + 1, reading, common)] = sent
                sent += 1
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                done[under_way.pop(future)] = future.result()
            while given in done:
                yield done.pop(given)
                given += 1


def _end_with_parent() -> None:
    """A process of the pool ends when the one that made it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def signatures_of(tables: Sequence[RowTable], common: likeness.Hashes) -> tuple[npt.NDArray[np.uint32], likeness.Hashes]:
    """The signatures of the rows of several tables, one after the other, and the hashes of their numbers."""
    matrix, numbers = _stack(sum(map(len, tables)))
    before = 0
    for table in tables:
        for start, stop in table.chunks(PART_ROWS, PART_BYTES):
            said = [likeness.said(orjson.loads(line)) for line in table.lines(start, stop)]
            matrix[before + start : before + stop], numbers[before + start : before + stop] = likeness.signatures(said, common)
        before += len(table)
    return matrix, numbers


def alike(path: Path) -> dict[int, int]:
    """Row (from 0) -> an earlier row it stays with: the first it is connected to by likeness, or that asks the same."""
    with RowTable(path) as table:
        if not len(table):
            return {}
        firsts = table.repeats()
        rows = np.arange(len(table))
        common = common_of(table)
        matrix, numbers = signatures_of([table], common)
        neighbours = likeness.Neighbours(matrix, numbers, rows[firsts == rows])
        heads = likeness.families(neighbours, likeness.Contents(table.row, common))
        asked = asked_of(table)
    found = [heads.get(first, first) for first in firsts.tolist()]
    return {row: head for row, head in enumerate(_together(found, asked)) if head != row}


def _together(heads: Sequence[int], asked: likeness.Hashes) -> list[int]:
    """The head of each row, where the families of rows that ask the same are made one."""
    joined = list(heads)

    def head(row: int) -> int:
        while joined[row] != row:
            row = joined[row]
        return row

    firsts: dict[int, int] = {}
    for row in np.flatnonzero(np.isin(asked, _seldom(asked))).tolist():
        one, other = head(row), head(firsts.setdefault(int(asked[row]), row))
        joined[max(one, other)] = min(one, other)
    return [head(row) for row in range(len(heads))]
