"""The types of files that hold rows: one entry says which names and which beginnings a type has, and how it is read.

A new type is an entry here, with a reader of its own in a file beside this one. Opening, archives, error texts, `data add --help` and
the page read the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import orjson

from studio.datasets.json_records import JsonLines, json_records
from studio.datasets.plain_text import text_records
from studio.datasets.records import SAMPLE_BYTES, Record
from studio.datasets.tables import csv_records, looks_like_table, parquet_records
from studio.datasets.workbooks import Workbook
from studio.datasets.yaml_records import yaml_records

OPENINGS = (b"{", b"[")


class Beginning:
    """The name and the first bytes of a file, as types are told by them."""

    def __init__(self, name: str, sample: bytes) -> None:
        self.suffix = PurePath(name).suffix.lower()
        self.sample = sample
        first, *others = sample.lstrip().split(b"\n", 2)
        self.first = first.strip()
        self.second = b"".join(others[:1]).strip()[:1]  # what the second line begins with

    @property
    def opens_json(self) -> bool:
        return self.first[:1] in OPENINGS

    @cached_property
    def is_whole(self) -> bool:
        """Whether the first line is a JSON object or list by itself."""
        try:
            return isinstance(orjson.loads(self.first), (dict, list))
        except orjson.JSONDecodeError:
            return False

    @cached_property
    def is_table(self) -> bool:
        return looks_like_table(self.sample, self.suffix)

    @property
    def is_one_line(self) -> bool:
        """One line that goes on behind the sample."""
        return b"\n" not in self.sample and len(self.sample) == SAMPLE_BYTES


@dataclass(frozen=True)
class FileType:
    """`read` gets the file, its name and its first bytes; `recognises` is asked in the order of FILE_TYPES."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Any, str, bytes], Iterable[Record]]
    recognises: Callable[[Beginning], bool]
    is_binary: bool = False  # has no encoding to find out
    is_prose: bool = False  # in an archive with data files it is their description


def _is_json_lines(file: Beginning) -> bool:
    if not file.opens_json:
        return False
    if file.is_whole and file.second in OPENINGS:
        return True
    is_named = file.suffix in JSON_LINES.suffixes and file.first[:1] == b"{"
    return is_named and (file.is_whole or file.second == b"{" or file.is_one_line)


def _is_json(file: Beginning) -> bool:
    return file.opens_json and (file.is_whole or file.suffix in (*JSON.suffixes, *JSON_LINES.suffixes, ""))


def _is_table(file: Beginning) -> bool:
    """By name, or by looks; prose may look like a table by chance."""
    return file.suffix in TABLE.suffixes or (file.suffix not in TEXT.suffixes and file.is_table)


JSON_LINES = FileType("jsonl", (".jsonl", ".ndjson"), JsonLines, _is_json_lines)
JSON = FileType("json", (".json",), json_records, _is_json)
YAML = FileType("yaml", (".yaml", ".yml"), yaml_records, lambda file: file.suffix in (".yaml", ".yml"))
TABLE = FileType("csv", (".csv", ".tsv"), csv_records, _is_table)
PARQUET = FileType(
    "parquet",
    (".parquet",),
    lambda file, name, _sample: parquet_records(file, name),
    lambda file: file.sample[:4] == b"PAR1" or file.suffix == ".parquet",
    is_binary=True,
)
TEXT = FileType(
    "text", (".txt", ".md"), text_records, lambda file: file.suffix not in (*JSON.suffixes, *JSON_LINES.suffixes), is_prose=True
)

XLSX = FileType("xlsx", (".xlsx",), Workbook, lambda file: file.suffix == ".xlsx" and file.sample[:2] == b"PK", is_binary=True)

# in the order in which they are tried: by content first, so that a JSON file called .csv is JSON
FILE_TYPES = (JSON_LINES, JSON, YAML, TABLE, PARQUET, XLSX, TEXT)
UNRECOGNISED = JSON_LINES  # its problems say what is wrong with a line
PACKED = (".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".zip")
SUFFIXES = tuple(suffix for entry in FILE_TYPES for suffix in entry.suffixes)
PROSE = tuple(suffix for entry in FILE_TYPES if entry.is_prose for suffix in entry.suffixes)


def file_type(name: str, sample: bytes, *, binary: bool) -> FileType | None:
    """The type of a file that begins with `sample`, of those with or without an encoding; None where no binary type fits."""
    beginning = Beginning(name, sample)
    for entry in FILE_TYPES:
        if entry.is_binary == binary and entry.recognises(beginning):
            return entry
    if binary:
        return None
    return UNRECOGNISED
