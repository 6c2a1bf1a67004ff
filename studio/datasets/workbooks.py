"""Rows of .xlsx workbooks, read by openpyxl as a stream: the first sheet that holds something, its first row the header."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, datetime, time
from typing import Any

from studio.datasets.archives import Allowance
from studio.datasets.records import MAX_COLUMNS, Record
from studio.datasets.tables import named_columns
from studio.errors import DatasetError

MAX_SHARED_BYTES = 128 * 1024**2  # of texts that cells share, which are held in memory
MAX_SHOWN = 10
WORKBOOK = "xl/workbook.xml"
UNREADABLE = (KeyError, ValueError, TypeError, IndexError, AttributeError, SyntaxError, OSError, EOFError, zlib.error, zipfile.BadZipFile)


class Workbook:
    """The rows of a workbook, once, and what a person should know of it."""

    def __init__(self, file: Any, name: str, _sample: bytes = b"") -> None:
        self._name = name
        _check_sizes(file, name)
        self._book = self._opened(file)
        sheets = list(self._book.worksheets)
        rows = ((sheet, self._rows(sheet)) for sheet in sheets)
        filled: tuple[Any, Any] = next(((sheet, found) for sheet, found in rows if found is not None), (None, None))
        self._sheet, self._found = filled
        self.notes: list[str] = []
        others = [sheet.title for sheet in sheets if sheet is not self._sheet]
        if self._sheet is not None and others:
            left_out = ", ".join(others[:MAX_SHOWN]) + f" and {len(others) - MAX_SHOWN} more" * (len(others) > MAX_SHOWN)
            self.notes.append(f"Read the sheet {self._sheet.title!r}; the others were left out: {left_out}.")

    def _opened(self, file: Any) -> Any:
        import openpyxl

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of styles
                return openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        except UNREADABLE as exc:
            raise self._damaged(exc) from None

    def _rows(self, sheet: Any) -> Iterator[tuple[int, tuple[Any, ...]]] | None:
        """The rows of a sheet from the first with a value on; None where there is none."""
        rows = enumerate(sheet.iter_rows(values_only=True), start=1)
        try:
            for number, row in rows:
                if any(cell is not None for cell in row):
                    return _from(number, row, rows)
        except UNREADABLE as exc:
            raise self._damaged(exc) from None
        return None

    def __iter__(self) -> Iterator[Record]:
        if self._found is None:
            return
        try:
            _, names = next(self._found)
            while names and names[-1] is None:
                names = names[:-1]
            if len(names) > MAX_COLUMNS:
                raise DatasetError(
                    f"{self._name} has {len(names):,} columns.", f"Keep the ones with text; at most {MAX_COLUMNS:,} are read."
                )
            header = named_columns(["" if name is None else str(name) for name in names], self._name)
            for number, row in self._found:
                fields = [_plain(cell) for cell in row[: len(header)]]
                fields += [None] * (len(header) - len(fields))
                if any(field is not None for field in fields):
                    yield number, dict(zip(header, fields, strict=True))
        except UNREADABLE as exc:
            raise self._damaged(exc) from None

    def _damaged(self, exc: BaseException) -> DatasetError:
        reason = str(exc).partition("\n")[0][:100] or type(exc).__name__
        return DatasetError(
            f"{self._name} is no readable .xlsx office document ({reason}).", "Save it again as .xlsx, or the sheet as CSV."
        )


def _from(number: int, row: tuple[Any, ...], rest: Iterator[tuple[int, tuple[Any, ...]]]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    yield number, row
    yield from rest


def _plain(cell: Any) -> Any:
    if isinstance(cell, (datetime, date, time)):
        return cell.isoformat()
    if isinstance(cell, (str, int, float)) or cell is None:
        return cell
    return str(cell)


def _check_sizes(file: Any, name: str) -> None:
    """Look at what the parts unpack to before any is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError):
        raise DatasetError(f"{name} is no readable .xlsx office document.", "Save it again as .xlsx, or the sheet as CSV.") from None
    finally:
        file.seek(0)
    allowance = Allowance(name, sum(part.compress_size for part in parts))
    for part in parts:
        allowance.take(part.file_size)
        if "sharedstrings" in part.filename.lower() and part.file_size > MAX_SHARED_BYTES:
            raise DatasetError(f"{name} holds more than {MAX_SHARED_BYTES // 1024**2} MB of texts.", "Save the sheet as CSV.")
