"""Each type of file and each row format is one entry; an entry that lacks something, or that some surface does not read, fails here."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import re
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from studio.commands import data as data_commands
from studio.datasets.blocks import FIELDS, MESSAGE_KEYS, WRITERS
from studio.datasets.file_types import FILE_TYPES, PACKED, SUFFIXES, FileType
from studio.datasets.formats import BY_NAME, FORMATS, Format
from studio.datasets.ingest import open_ingest
from studio.datasets.mapping import RowError
from studio.datasets.reading import open_source
from studio.datasets.records import Problem
from studio.errors import DatasetError
from studio.ui import data_adding
from tests.unit.test_datasets_formats import DETECTED

ROWS: list[dict[str, Any]] = [{"prompt": "Name a river.", "completion": "The Po."}, {"prompt": "And a lake?", "completion": "Como: deep"}]


def parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


def workbook() -> bytes:
    file, book = io.BytesIO(), openpyxl.Workbook()
    for row in (ROWS[0].keys(), *(row.values() for row in ROWS)):
        book.worksheets[0].append([*row])
    book.save(file)
    return file.getvalue()


# the same rows in each type
WRITTEN = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "json": json.dumps(ROWS, indent=1).encode(),
    "yaml": "".join(f"- prompt: {row['prompt']}\n  completion: '{row['completion']}'\n" for row in ROWS).encode(),
    "csv": b"prompt,completion\n" + "".join(f'"{row["prompt"]}","{row["completion"]}"\n' for row in ROWS).encode(),
    "parquet": parquet(),
    "xlsx": workbook(),
    "text": b"A river.\n\nA lake.\n",
}


@pytest.mark.parametrize("entry", FILE_TYPES, ids=lambda entry: entry.name)
def test_every_type_of_file_is_read_whatever_of_its_names_it_has(entry: FileType, tmp_path: Path) -> None:
    wanted = ROWS if entry.name != "text" else [{"text": "A river."}, {"text": "A lake."}]
    for suffix in entry.suffixes:
        assert re.fullmatch(r"\.[a-z]+", suffix)
        content = WRITTEN[entry.name]  # an entry without rows to try it on is incomplete
        if suffix == ".tsv":
            content = content.replace(b'","', b'"\t"').replace(b",completion", b"\tcompletion")
        for name, written in ((f"rows{suffix}", content), (f"rows{suffix.upper()}.gz", gzip.compress(content))):
            path = tmp_path / name
            path.write_bytes(written)
            with open_source(path) as source:
                assert source.file_type == entry.name and [row for _, row in source.records] == wanted


def test_a_type_is_told_by_content_before_its_name(tmp_path: Path) -> None:
    for name, content, wanted in (
        ("rows.csv", WRITTEN["jsonl"], "jsonl"),
        ("rows.txt", WRITTEN["parquet"], "parquet"),
        ("rows.jsonl", WRITTEN["csv"], "csv"),
        ("rows", WRITTEN["json"], "json"),
        ("rows.json", b"no JSON at all\n", "jsonl"),  # whose problems name the line
        ("pasted", WRITTEN["csv"], "csv"),
        ("pasted", WRITTEN["text"], "text"),
    ):
        (tmp_path / name).write_bytes(content)
        with open_source(tmp_path / name) as source:
            assert source.file_type == wanted, name


def test_every_surface_names_every_type(tmp_path: Path) -> None:
    (tmp_path / "rows.bin").write_bytes(b"\x01\x02\x03abc" * 500)
    with pytest.raises(DatasetError) as refused, open_source(tmp_path / "rows.bin"):
        pass
    told = [refused.value.fix, *re.findall(r'help=f"A \{.*?\}', inspect.getsource(data_commands))]
    help_text = inspect.signature(data_commands.add, eval_str=True).parameters["source"].annotation.__metadata__[0].help
    assert len(set(SUFFIXES)) == len(SUFFIXES) == sum(len(entry.suffixes) for entry in FILE_TYPES)
    for suffix in (*SUFFIXES, *PACKED):
        assert suffix in help_text and suffix in refused.value.fix, told
    page = inspect.getsource(data_adding)
    assert "[*SUFFIXES, *PACKED]" in page and not re.search(r'"\.(jsonl|csv|parquet)"', page)


@pytest.mark.parametrize("entry", FORMATS, ids=lambda entry: entry.name)
def test_every_row_format_is_complete(entry: Format, tmp_path: Path) -> None:
    names = entry.role_names()
    assert entry.description and len(set(names)) == len(names) and any(role.required for role in entry.roles)
    assert all(role.shapes and role.aliases for role in entry.roles)
    tried = [row for name, row, _ in DETECTED if name == entry.name] or [{name: "a" for name in names}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(tried[0]) + "\n", encoding="utf-8")
    with open_ingest(path, format=entry.name) as ingest:
        found = [result for _, result in ingest]
        assert ingest.layout.format is entry and found and not isinstance(found[0], Problem)
    assert entry.is_chosen_only or tried is not None
    required = [role.name for role in entry.roles if role.required]
    with pytest.raises(RowError):
        entry.examples({}, {name: name for name in required})


def test_a_format_without_rows_that_are_detected_as_it_can_only_be_chosen() -> None:
    detected = {name for name, _, _ in DETECTED}
    assert {entry.name for entry in FORMATS if not entry.is_chosen_only} <= detected
    assert {entry.name for entry in FORMATS if entry.is_chosen_only} == {"continuation"}


def test_the_quick_way_knows_formats_and_their_roles_alone() -> None:
    assert FIELDS.keys() == WRITERS.keys() <= BY_NAME.keys() and MESSAGE_KEYS.keys() <= FIELDS.keys()
    for name, fields in FIELDS.items():
        assert {field[0] for field in fields} <= set(BY_NAME[name].role_names()), name


def test_yaml_takes_words_as_they_are_written_and_refuses_what_stands_for_something_else(tmp_path: Path) -> None:
    (tmp_path / "rows.yml").write_bytes(
        b"data:\n- {prompt: no, completion: 1.10, n: 007}\n- {prompt: &a x, completion: *a}\n"
        b"- {prompt: !!python/name:os.system , completion: b}\n- {prompt: null, completion: 3, prompt: c}\n- {prompt: 2020-01-01, completion: true}\n"
    )
    with open_source(tmp_path / "rows.yml") as source:
        (_, first), (three, alias), (_, tag), (_, twice), (_, last) = source.records
    assert first == {"prompt": "no", "completion": "1.10", "n": "007"} and last == {"prompt": "2020-01-01", "completion": True}
    assert three == 3 and isinstance(alias, Problem) and "alias *a" in alias.problem
    assert isinstance(tag, Problem) and "tag" in tag.problem and isinstance(twice, Problem) and "twice" in twice.problem
    (tmp_path / "two.yaml").write_bytes(b"prompt: a\ncompletion: b\n---\nprompt: c\ncompletion: [\n")
    with open_source(tmp_path / "two.yaml") as source:
        found = list(source.records)
    assert found[0] == (1, {"prompt": "a", "completion": "b"})
    assert isinstance(found[-1][1], Problem) and "rest of two.yaml" in found[-1][1].problem
    (tmp_path / "deep.yaml").write_bytes(b"- " + b"[" * 5000 + b"]" * 5000)
    with open_source(tmp_path / "deep.yaml") as source:
        assert [type(row) for _, row in source.records] == [Problem]
