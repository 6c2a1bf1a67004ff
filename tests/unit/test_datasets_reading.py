"""Files to rows: every type and encoding that is promised, and every kind of damage as problems with line and fix."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import openpyxl
import orjson
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from studio.datasets import archives, records
from studio.datasets.ingest import Problems, open_ingest
from studio.datasets.reading import open_source
from studio.datasets.records import Problem
from studio.errors import DatasetError

GOOD = b'{"question":"a","answer":"b"}\n'
MANY = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(st.characters(codec="utf-8"), max_size=30)
rows = st.lists(st.fixed_dictionaries({"question": texts, "answer": texts}), min_size=1, max_size=6)


def read(path: Path) -> tuple[list[tuple[int, Any]], list[Problem]]:
    with open_source(path, scratch=path.parent) as source:
        records = list(source.records)
    return [(n, r) for n, r in records if not isinstance(r, Problem)], [r for _, r in records if isinstance(r, Problem)]


def values(path: Path) -> list[Any]:
    found, problems = read(path)
    assert not problems
    return [row for _, row in found]


def write(folder: Path, name: str, content: bytes | str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


# what is written is read back


@MANY
@given(rows)
def test_jsonl_comes_back(tmp_path: Path, given_rows: list[dict[str, str]]) -> None:
    lines = b"".join(orjson.dumps(row) + b"\n" for row in given_rows)
    assert values(write(tmp_path, "a.jsonl", lines)) == given_rows
    assert values(write(tmp_path, "a.jsonl.gz", gzip.compress(lines))) == given_rows


@MANY
@given(rows, st.sampled_from([None, 1]))
def test_json_comes_back(tmp_path: Path, given_rows: list[dict[str, str]], indent: int | None) -> None:
    assert values(write(tmp_path, "a.json", json.dumps(given_rows, indent=indent))) == given_rows
    columns = {name: [row[name] for row in given_rows] for name in given_rows[0]}
    assert values(write(tmp_path, "a.json", json.dumps(columns, indent=indent))) == given_rows
    assert values(write(tmp_path, "a.json", json.dumps({"version": 1, "data": given_rows}, indent=indent))) == given_rows


plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=30)  # csv itself changes bare carriage returns


@MANY
@given(st.lists(st.tuples(plain, plain).filter(any), min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_csv_comes_back(tmp_path: Path, pairs: list[tuple[str, str]], delimiter: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("question", "answer"), *pairs])
    found = values(write(tmp_path, "a.tsv" if delimiter == "\t" else "a.csv", text.getvalue()))
    assert [(row["question"], row["answer"]) for row in found] == pairs


@MANY
@given(rows)
def test_parquet_comes_back(tmp_path: Path, given_rows: list[dict[str, str]]) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given_rows), path)
    assert values(path) == given_rows


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_encodings_with_and_without_a_mark(tmp_path: Path, name: str, encoding: str) -> None:
    content = {
        "a.jsonl": '{"question":"ä","answer":"ж"}\n',
        "a.json": '[{"question":"ä","answer":"ж"}]',
        "a.csv": "question,answer\nä,ж\n",
    }[name]
    assert values(write(tmp_path, name, content, encoding)) == [{"question": "ä", "answer": "ж"}]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Was heißt grün? Schön, dass Sie fragen: über Äpfel"),
        ("cp1251", "Как дела сегодня, друг мой? Хорошо, спасибо"),
        ("cp932", "元気ですか今日は良い天気ですね、はい元気です"),
    ],
)
def test_legacy_encodings_are_guessed_and_the_guess_is_said(tmp_path: Path, encoding: str, text: str) -> None:
    path = write(tmp_path, "a.csv", f'question,answer\n"{text}",x\n', encoding)
    with open_source(path) as source:
        assert [row for _, row in source.records] == [{"question": text, "answer": "x"}]
        assert "guess" in source.notes[0]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    found, _ = read(write(tmp_path, "a.json", '[\n{"a": 1},\n\n{"a":\n2},\n{"a": 3}]'))
    assert [line for line, _ in found] == [2, 4, 6]
    found, problems = read(write(tmp_path, "a.csv", 'a,b\n1,"x\ny"\n2\n3,4\n'))
    assert [line for line, _ in found] == [2, 5] and problems[0].line == 4
    found, problems = read(write(tmp_path, "a.jsonl", b"\n" + GOOD + b"\nnope\n" + GOOD))
    assert [line for line, _ in found] == [2, 5] and problems[0].line == 4


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"a": {"0": "x", "1": "y"}, "b": {"0": 1, "1": 2}}', [{"a": "x", "b": 1}, {"a": "y", "b": 2}]),
        ("a.json", '{"k1": {"a": "x"}, "k2": {"a": "y"}}', [{"a": "x"}, {"a": "y"}]),
        ("a.json", '{"a": "x", "b": "y"}', [{"a": "x", "b": "y"}]),
        ("a.json", '["x", "y"]', [{"text": "x"}, {"text": "y"}]),
        ("a.json", '{"rows": [{"row_idx": 0, "row": {"a": "x"}}]}', [{"a": "x"}]),
        ("a.jsonl", '{\n "a": "x"\n}\n{\n "a": "y"\n}\n', [{"a": "x"}, {"a": "y"}]),
        ("a.jsonl", '[{"a": "x"},\n{"a": "y"}]', [{"a": "x"}, {"a": "y"}]),
        ("a.csv", '[{"a": "x"}]', [{"a": "x"}]),
        ("a.json", "a,b\nx,y\n", [{"a": "x", "b": "y"}]),
        ("a.txt", '{"a": "x"}\n{"a": "y"}\n', [{"a": "x"}, {"a": "y"}]),
        ("pasted", "question,answer\nx,y\n", [{"question": "x", "answer": "y"}]),
        ("pasted", "Hello there, friend.\nHow are you, today?", [{"text": "Hello there, friend."}, {"text": "How are you, today?"}]),
        ("a.csv", "a;b\nx;y, z\n", [{"a": "x", "b": "y, z"}]),
        ("a.csv", "sep=;\na;b\nx;y, z\n", [{"a": "x", "b": "y, z"}]),
        ("a.csv", '"a" ; "b"\n"x ; ""1"" " ; "y"\n', [{"a": 'x ; "1" ', "b": "y"}]),
        ("a.csv", 'a, b\nx, "y, z"\n', [{"a": "x", "b": "y, z"}]),
        ("a.csv", "a , b\nx , y\n", [{"a": "x", "b": "y"}]),
        ("a.json", '{"columns": ["a", "b"], "index": [0, 1], "data": [["x", 1], ["y", 2]]}', [{"a": "x", "b": 1}, {"a": "y", "b": 2}]),
        ("a.json", '{"0": {"a": "x", "b": 1}}', [{"a": "x", "b": 1}]),
        ("a.json", '{"schema": {"fields": []}, "data": [{"index": 0, "a": "x"}]}', [{"index": 0, "a": "x"}]),
        ("a.jsonl", '{"a": 36893488147419103232, "b": [-9999999999999999999]}\n', [{"a": 2**65, "b": [-9999999999999999999]}]),
        ("a.csv", 'a,b\n"he said \\"hi\\", ok",y\n', [{"a": 'he said "hi", ok', "b": "y"}]),
        ("a.csv", "a,b\rx,y\r", [{"a": "x", "b": "y"}]),
        ("a.csv", "a,,b\nx,,y\n", [{"a": "x", "column 2": "", "b": "y"}]),
        ("a.txt", "one\ntwo\n\nthree\n\n\n", [{"text": "one\ntwo"}, {"text": "three"}]),
        ("a.txt", "one\r\ntwo\r\n", [{"text": "one"}, {"text": "two"}]),
        ("a.md", "# Title\n\nText\n", [{"text": "# Title"}, {"text": "Text"}]),
    ],
)
def test_layouts(tmp_path: Path, name: str, content: str, expected: list[Any]) -> None:
    assert values(write(tmp_path, name, content)) == expected


def test_values_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.datasets.json_stream.CHUNK_BYTES", 7)
    given_rows = [{"a": f"ä{'x' * n}", "b": [n, {"c": 1.5}]} for n in range(40)]
    assert values(write(tmp_path, "a.json", json.dumps(given_rows, indent=1, ensure_ascii=False))) == given_rows
    assert values(write(tmp_path, "a.json", json.dumps({"data": given_rows}))) == given_rows


def test_packed_files_are_read_like_what_they_hold(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("rows/a.jsonl")
        entry.size = len(GOOD)
        archive.addfile(entry, io.BytesIO(GOOD))
    packed = {
        "a.jsonl.bz2": bz2.compress(GOOD),
        "a.jsonl.xz": lzma.compress(GOOD) + lzma.compress(GOOD),
        "a.jsonl.zst": pyarrow.Codec("zstd").compress(GOOD, asbytes=True),
        "a.tar": tar.getvalue(),
        "a.tar.gz": gzip.compress(tar.getvalue()),
        "a.tgz": gzip.compress(tar.getvalue()),
        "a.tar.xz": lzma.compress(tar.getvalue()),
    }
    for name, content in packed.items():
        found = values(write(tmp_path, name, content))
        assert found == [orjson.loads(GOOD)] * (2 if name == "a.jsonl.xz" else 1), name


def test_a_workbook_is_read_from_its_first_sheet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Rows"
    for row in [(None, None), ("question", " answer "), ("a", 5), (None, None), (datetime(2026, 1, 2), "ж")]:
        book.active.append(row)
    book.create_sheet("Notes").append(("x",))
    book.save(tmp_path / "a.xlsx")
    with open_source(tmp_path / "a.xlsx") as source:
        assert [row for _, row in source.records] == [{"question": "a", "answer": 5}, {"question": "2026-01-02T00:00:00", "answer": "ж"}]
        assert source.file_type == "xlsx" and "left out: Notes" in source.notes[0]


# damage


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "<x/>")
    return file.getvalue()


WHOLE_FILE = {
    "empty": ("a.jsonl", b"", "is empty"),
    "blank": ("a.csv", b"\n \n", "is empty"),
    "only a mark": ("a.json", b"\xef\xbb\xbf", "is empty"),
    "zeros": ("a.jsonl", b"\0" * 999, "is empty"),
    "binary": ("a.jsonl", bytes(range(256)) * 20, "is binary"),
    "zip": ("a.csv", b"PK\x03\x04xxxx", "damaged or cut off"),
    "pdf": ("a.txt", b"%PDF-1.4", "PDF"),
    "parquet cut off": ("a.parquet", b"PAR1xxxxPAR1", "no readable Parquet"),
    "parquet by name only": ("a.parquet", b"hello", "no readable Parquet"),
    "gz cut off": ("a.jsonl.gz", gzip.compress(GOOD * 999)[:60], "damaged or cut off"),
    "gz damaged": ("a.gz", b"\x1f\x8b\x08\x00aaaaaaaaaaaa", "damaged or cut off"),
    "gz in gz": ("a.gz", gzip.compress(gzip.compress(GOOD)), "archive inside an archive"),
    "xz cut off": ("a.jsonl.xz", lzma.compress(GOOD * 999)[:60], "damaged or cut off"),
    "zstd damaged": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(40), "damaged or cut off"),
    "bzip2 in gz": ("a.gz", gzip.compress(bz2.compress(GOOD)), "archive inside an archive"),
    "Feather": ("a.feather", b"ARROW1\0\0" + b"a\0" * 400, "Arrow or Feather file"),
    "old workbook": ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(999), "old office document"),
    "web page": ("a.html", b"<!DOCTYPE html>\n<html><table></table></html>", "web page"),
    "Word": ("a.docx", zipped("[Content_Types].xml", "word/document.xml"), "office document .a Word document"),
    "workbook without sheets": ("a.xlsx", zipped("xl/workbook.xml", "[Content_Types].xml"), "no readable .xlsx"),
    "column named twice": ("a.csv", b"a,a\n1,2\n", "named twice"),
    "a million columns": ("a.csv", b",".join(b"c%d" % n for n in range(10**6)) + b"\n1\n", "columns"),
    "columns of different length": ("a.json", b'{"a": ["x", "y"], "b": ["z"]}', "a 2, b 1"),
}


@pytest.mark.parametrize("case", WHOLE_FILE)
def test_a_file_that_can_not_be_read_is_one_line_with_a_fix(tmp_path: Path, case: str) -> None:
    name, content, message = WHOLE_FILE[case]
    with pytest.raises(DatasetError, match=message) as caught:
        read(write(tmp_path, name, content))
    assert (
        name.removesuffix(".gz").removesuffix(".xz").removesuffix(".zst") in str(caught.value)
        and caught.value.fix
        and "\n" not in str(caught.value)
    )


ROWS = {
    "not JSON": ("a.jsonl", GOOD + b"nope\n" + GOOD, 2, "Not valid JSON", 2),
    "cut off": ("a.jsonl", GOOD + b'{"question":"a', 2, "Not valid JSON", 1),
    "bad UTF-8": ("a.jsonl", GOOD * 3 + b'{"question":"\xff","answer":"b"}\n', 4, "not UTF-8", 3),
    "NUL": ("a.jsonl", GOOD + b'{"question":"\0","answer":"b"}\n', 2, "NUL", 1),
    "NaN in a line": ("a.jsonl", GOOD + b'{"question":"a","answer":NaN}\n', 2, "NaN", 1),
    "NaN in a list": ("a.json", b'[{"a": 1},\n{"a": NaN},\n{"a": 2}]', 2, "NaN", 2),
    "deep line": ("a.jsonl", GOOD + b"[" * 10_000 + b"]" * 10_000 + b"\n", 2, "depth", 1),
    "deep list": ("a.json", b'[{"a": 1},\n' + b"[" * 100_000, 2, "too deeply", 1),
    "a number": ("a.jsonl", GOOD + b"5\n", 2, "is a number", 1),
    "null": ("a.json", b'[{"a": 1},\nnull]', 2, "is null", 1),
    "broken value in a list": ("a.json", b'[{"a": 1},\n{"a": 2 "b": 3},\n{"a": {"a": 5}},\n{"a": 6}]', 2, "Not valid JSON", 3),
    "quote missing in a list": ("a.json", b'{"data": [{"a": "x"}, {"a": "y}, {"a": "z"}, {"a": "w"}]}', 1, "Not valid JSON", 3),
    "words in a list": ("a.json", b'[{"a": 1},\nsee below,\n{"a": 2}]', 2, "Not valid JSON", 2),
    "list cut off": ("a.json", b'[{"a": 1},\n{"a": "x', 2, "ends in the middle", 1),
    "comma at the end": ("a.json", b'[{"a": 1},\n]', 2, "Not valid JSON", 1),
    "comma missing": ("a.json", b'[{"a": 1}\n{"a": 2}]', 2, "where ',' is expected", 2),
    "text behind": ("a.json", b'[{"a": 1}]\nxyz', 2, "Not valid JSON", 1),
    "endless number": ("a.json", b'[{"a": 1},\n{"a": ' + b"9" * 5000 + b"}]", 2, "too many digits", 1),
    "too few fields": ("a.csv", b"a,b\n1,2\n3\n", 3, "1 fields where the header names 2", 1),
    "too many fields": ("a.csv", b"a,b\n1,2\n3,4,5\n6,7\n", 3, "3 fields", 2),
    "quote left open": ("a.csv", b'a,b\n1,2\n"3,4\n5,6\n', 3, "quoting is broken", 1),
    "quote inside": ("a.csv", b'a,b\n"1"x,2\n3,4\n', 2, "quoting is broken", 1),
    "bad UTF-8 in text": ("a.txt", "äöü äöü\n\n".encode() + b"\xff\xfe\n", 3, "not UTF-8", 1),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_a_problem_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    name, content, line, message, good = ROWS[case]
    found, problems = read(write(tmp_path, name, content))
    assert len(found) == good
    assert [problem.line for problem in problems] == [line]
    assert message in problems[0].problem and problems[0].fix


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_line_of_any_length_is_a_problem(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(records, "CHUNK_BYTES", 100)
    monkeypatch.setattr("studio.datasets.json_stream.CHUNK_BYTES", 100)
    long = b"x" * 5000
    content = {
        "a.jsonl": b'{"a": "1"}\n{"a": "' + long + b'"}\n{"a": "2"}\n',
        "a.json": b'[{"a": "1"},\n{"a": "' + long + b'"}]',
        "a.csv": b"a,b\n1,2\n" + long + b",2\n3,4\n",
    }[name]
    found, problems = read(write(tmp_path, name, content))
    assert found and len(problems) == 1 and "longer than" in problems[0].problem


def test_half_a_surrogate_pair_and_stray_bytes_are_problems_of_their_rows(tmp_path: Path) -> None:
    cases = {
        "a.json": b'[{"question": "\\ud800", "answer": "b"}, {"question": "x", "answer": "b"}]',
        "a.csv": "question,answer\näöüäöü,b\n".encode() + b"\xff,d\n",
        "a.jsonl": GOOD + b'{"question": "\\ud800", "answer": "b"}\n',
    }
    for name, content in cases.items():
        problems, good = Problems(), 0
        with open_ingest(write(tmp_path, name, content)) as ingest:
            for _, result in ingest:
                if isinstance(result, Problem):
                    problems.add(result)
                else:
                    good += 1
        assert (problems.count, good) == (1, 1), name


def test_a_packed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_UNPACKED_BYTES", 1024**2)
    with pytest.raises(DatasetError, match="unpacks to more than"):
        read(write(tmp_path, "a.jsonl.gz", gzip.compress(b"\0" * 20_000_000)))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DatasetError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DatasetError, match="save_to_disk") as caught:
        read(tmp_path)
    assert "to_parquet" in caught.value.fix


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.gz", "a"]),
    st.one_of(st.binary(max_size=200), st.text('[]{}",:\n0aé\\\t;', max_size=80).map(str.encode)),
)
def test_any_bytes_end_in_rows_or_in_one_of_our_errors(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path, name, content)
    try:
        with open_ingest(path, scratch=tmp_path) as ingest:
            for line, result in ingest:
                assert line >= 1
                assert isinstance(result, Problem) or orjson.loads(result)
    except DatasetError as exc:
        assert exc.fix and "\n" not in str(exc)
