"""A corpus of malformed data files from a seed: `cases(seed)` gives their names, contents, and what must come of them.

Run as `python -m tests.malformed HOME`, it adds the files that stdin names as a person would, and prints a JSON line for each: what
came of it, and the process's peak memory so far. Knows nothing of how files are read.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import resource
import stat
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SEED = 20_240_607
ROUNDS = 3  # of each kind of damage to each kind of file
MEGABYTE = 1024**2


@dataclass(frozen=True)
class Case:
    """`good`: rows that must be read when bad ones may be skipped; None where the damage decides."""

    name: str
    filename: str
    content: bytes | Callable[[BinaryIO], None]
    good: int | None = None
    refused: str = ""  # part of the reason for which the whole file must be refused

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            if isinstance(self.content, bytes):
                file.write(self.content)
            else:
                self.content(file)


# whole files


def _rows(chance: random.Random, count: int = 40) -> list[dict[str, Any]]:
    words = ["the", "cat", "sat", "on", "a", "mat", "über", "naïve", "東京", "🙂", "and", "then,", "again;", "or", "|", "not"]
    return [
        {"instruction": " ".join(chance.choices(words, k=6)), "input": "", "output": " ".join(chance.choices(words, k=9)) + f" {n}"}
        for n in range(count)
    ]


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def _zip(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # without the time of today
    return file.getvalue()


def _chat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]} for row in rows
    ]


WHOLE: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": _jsonl,
    "chat.jsonl": lambda rows: _jsonl(_chat(rows)),
    "list.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "pretty.json": lambda rows: json.dumps({"version": 1, "data": rows}, indent=2).encode(),
    "columns.json": lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode(),
    "table.csv": lambda rows: _table(rows, ","),
    "table.tsv": lambda rows: _table(rows, "\t"),
    "words.txt": lambda rows: "\n\n".join(row["output"] for row in rows).encode(),
    "rows.parquet": _parquet,
    "rows.jsonl.gz": lambda rows: gzip.compress(_jsonl(rows), mtime=0),
    "rows.zip": lambda rows: _zip({"rows.jsonl": _jsonl(rows)}),
    "wide.csv": lambda rows: _table(rows, ",").decode().encode("utf-16"),
}


# kinds of damage


def _insert(content: bytes, what: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + what + content[place:]


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 20)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _shuffle(content: bytes, chance: random.Random) -> bytes:
    lines = content.split(b"\n")
    chance.shuffle(lines)
    return b"\n".join(lines)


def _drop(content: bytes, chance: random.Random) -> bytes:
    """Some of the characters that hold a file together are missing."""
    places = [place for place, byte in enumerate(content) if byte in b'{}[]",:\n\t'] or [0]
    gone = set(chance.sample(places, min(len(places), chance.randint(1, 5))))
    return bytes(byte for place, byte in enumerate(content) if place not in gone)


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": lambda content, chance: content[: chance.randrange(len(content))],
    "bytes changed": _flip,
    "bad UTF-8": lambda content, chance: _insert(content, chance.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf5\x80"]), chance),
    "NUL": lambda content, chance: _insert(content, b"\0" * chance.randint(1, 9), chance),
    "marks missing": _drop,
    "quotes": lambda content, chance: _insert(content, chance.choice([b'"', b'""', b"'", b'\\"', b'"\n"']), chance),
    "line ends": lambda content, chance: content.replace(b"\n", chance.choice([b"\r", b"\r\n", b"\n\r", b"\n\n"])),
    "shuffled lines": _shuffle,
}


# cases of their own


def _lines(*middle: str) -> bytes:
    row = '{"question": "q", "answer": "a"}\n'
    return (row * 3 + "".join(f"{line}\n" for line in middle) + row * 2).encode()


def _long(before: bytes, after: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(before)
        for _ in range(200):
            file.write(b"x" * MEGABYTE)
        file.write(after)

    return write


def _linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("rows.jsonl")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


def _overlapping() -> bytes:
    """Two entries in the list that share one content, as in a bomb without recursion."""
    content = bytearray(_zip({"a.jsonl": _lines(), "b.jsonl": _lines()}))
    first, second = (content.find(b"PK\x01\x02"), content.rfind(b"PK\x01\x02"))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    return bytes(content)


def _many_entries() -> bytes:
    return _zip({f"{n}.jsonl": b"" for n in range(3000)})


def _zeros(megabytes: int) -> bytes:
    packer = io.BytesIO()
    with gzip.GzipFile(fileobj=packer, mode="wb", mtime=0) as file:
        for _ in range(megabytes):
            file.write(b" " * MEGABYTE)
    return packer.getvalue()


def _zip_bomb(megabytes: int) -> Callable[[BinaryIO], None]:
    def write(target: BinaryIO) -> None:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("rows.jsonl", "w") as entry:
            for _ in range(megabytes):
                entry.write(b" " * MEGABYTE)

    return write


def _own_cases() -> Iterator[Case]:
    good = _lines()
    deep = "[" * 10_000 + "]" * 10_000
    object_deep = '{"a":' * 10_000 + "1" + "}" * 10_000
    wide_line = b"{" + b",".join(b'"c%d":1' % n for n in range(10**6)) + b"}\n"
    yield from [
        Case("empty", "a.jsonl", b"", refused="is empty"),
        Case("empty csv", "a.csv", b"\n\n", refused="is empty"),
        Case("only a mark", "a.json", b"\xef\xbb\xbf", refused="is empty"),
        Case("empty list", "a.json", b"[]", refused="no rows"),
        Case("only a header", "a.csv", b"question,answer\n", refused="no rows"),
        Case("empty gz", "a.jsonl.gz", gzip.compress(b"", mtime=0), refused="is empty"),
        Case("empty zip", "a.zip", _zip({}), refused="holds no data file"),
        Case("only zeros", "a.jsonl", b"\0" * 100_000, refused="is empty"),
        Case("binary", "a.jsonl", random.Random(1).randbytes(50_000), refused="is binary"),
        Case("lone surrogate", "a.jsonl", _lines('{"question": "\\ud800", "answer": "a"}'), good=5),
        Case("lone surrogate in a list", "a.json", b'[{"text": "a"}, {"text": "\\udc00"}, {"text": "b"}]', good=2),
        Case("NaN", "a.jsonl", _lines('{"question": "q", "answer": NaN}', '{"question": -Infinity, "answer": "a"}'), good=5),
        Case("NaN in a list", "a.json", b'[{"text": "a"},\n{"text": NaN},\n{"text": "b"}]', good=2),
        Case("a key twice", "a.jsonl", _lines('{"question": "q", "question": "r", "answer": "a"}'), good=5),
        Case("a key twice in a list", "a.json", b'[{"text": "a"},\n{"text": "b", "text": "c"}]', good=1),
        Case("a key twice in a document", "a.json", b'{"text": ["a"], "text": ["b"]}', refused="stands twice"),
        Case("10,000 lists deep", "a.jsonl", _lines(f'{{"question": {deep}, "answer": "a"}}'), good=5),
        Case("10,000 lists deep, unused", "a.jsonl", _lines(f'{{"question": "q", "answer": "a", "more": {deep}}}'), good=5),
        Case("10,000 objects deep", "a.json", f'[{{"text": "a"}},\n{{"text": {object_deep}}},\n{{"text": "b"}}]'.encode(), good=2),
        Case("never closed", "a.json", b"[" * 1_000_000),
        Case("deep text in a cell", "a.csv", f'question,answer\nq,a\n"{deep}",a\n'.encode()),
        Case("mixed types", "a.jsonl", _lines("5", '"text"', "[1]", "null", '{"question": {"x": 1}, "answer": "a"}'), good=5),
        Case("huge number", "a.jsonl", _lines(f'{{"question": "q", "answer": {"9" * 5000}}}'), good=5),
        Case("infinite number", "a.jsonl", _lines('{"question": "q", "answer": 1e999}'), good=5),
        Case("ragged", "a.csv", b"question,answer\na,b\nc\nd,e,f\ng,h\n", good=2),
        Case("quote left open", "a.csv", b'question,answer\na,b\n"c,d\n' + b"e,f\n" * 50),
        Case("quote inside", "a.csv", b'question,answer\na,b\n"c"x,d\ne,f\n', good=2),
        Case("a column twice", "a.csv", b"a,a\n1,2\n", refused="named twice"),
        Case("a column without a name", "a.csv", b"question,answer,\na,b,c\n", good=1),
        Case("JSON called csv", "a.csv", good, good=5),
        Case("csv called jsonl", "a.jsonl", b"question,answer\na,b\nc,d\n", good=2),
        Case("parquet called csv", "a.csv", _parquet([{"question": "a", "answer": "b"}]), good=1),
        Case("text called parquet", "a.parquet", good, refused="no readable Parquet"),
        Case("jsonl called zip", "a.zip", good, good=5),
        Case("zip called jsonl", "a.jsonl", _zip({"a.jsonl": good}), good=5),
        Case("PDF", "a.txt", b"%PDF-1.4\n", refused="PDF"),
        Case("Excel", "a.xlsx", _zip({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), refused="office document"),
        Case("a broken value in a list", "a.json", b'[{"text": "a"},\n{"text": },\n{"text": "b"},\n{"text" "c"},\n{"text": "d"}]', good=3),
        Case("a comma too many", "a.json", b'[{"text": "a"}, {"text": "b"},]', good=2),
        Case("columns of several lengths", "a.json", b'{"a": ["x", "y"], "b": ["z"]}', refused="different numbers"),
        Case("a million columns", "a.csv", b",".join(b"c%d" % n for n in range(10**6)) + b"\n1\n", refused="columns"),
        Case("a million keys", "a.jsonl", wide_line, refused="values"),
        Case("a million keys in the middle", "a.jsonl", good + wide_line + good, good=10),
        Case("a million keys in a document", "a.json", wide_line, refused="columns"),
        Case("a million numbers in a row", "a.jsonl", good + b'{"question": [' + b"1000," * 10**6 + b"1]}\n" + good, good=10),
        Case("a row of 31 MB", "a.jsonl", _lines('{"question": "' + "x" * 31_000_000 + '", "answer": "a"}'), good=6),
        Case("a row of 31 MB with an emoji", "a.jsonl", _lines('{"question": "' + "x" * 31_000_000 + '🙂", "answer": "a"}'), good=5),
        Case(
            "a row of 31 MB with an emoji in a list",
            "a.json",
            ('[{"text": "🙂' + "x" * 31_000_000 + '"},\n{"text": "a"}]').encode(),
            good=1,
        ),
        Case("a field of 31 MB with an emoji", "a.csv", ("question,answer\na,b\n🙂" + "x" * 31_000_000 + ",d\ne,f\n").encode(), good=2),
        Case("a line of 200 MB", "a.jsonl", _long(good + b'{"question": "', b'", "answer": "a"}\n' + good), good=10),
        Case("a value of 200 MB", "a.json", _long(b'[{"text": "a"},\n{"text": "', b'"},\n{"text": "b"}]'), good=2),
        Case("a field of 200 MB", "a.csv", _long(b"question,answer\na,b\n", b",d\ne,f\n")),
        Case("a text of 200 MB", "a.txt", _long(b"one\n\n", b"\n\ntwo\n"), good=2),
        Case("200 MB without a line end", "a.jsonl", _long(b"", b"")),
        Case("quotes of 200 MB", "a.csv", _long(b'question,answer\na,b\n"', b'",d\ne,f\n')),
        Case("gz bomb", "a.jsonl.gz", _zeros(300), refused="times its size"),
        Case("zip bomb", "a.zip", _zip_bomb(300), refused="times its size"),
        Case("gz in gz", "a.jsonl.gz", gzip.compress(gzip.compress(good, mtime=0), mtime=0), refused="archive inside"),
        Case("zip in gz", "a.zip.gz", gzip.compress(_zip({"a.jsonl": good}), mtime=0), refused="archive inside"),
        Case("zip in zip", "a.zip", _zip({"b.zip": _zip({"a.jsonl": good})}), refused="archive inside"),
        Case("zip in zip by another name", "a.zip", _zip({"a.jsonl": _zip({"a.jsonl": good})}), refused="archive inside"),
        Case("gz in zip", "a.zip", _zip({"a.jsonl.gz": gzip.compress(good, mtime=0)}), refused="archive inside"),
        Case("a path upwards", "a.zip", _zip({"../../etc/rows.jsonl": good}), refused="points outside"),
        Case("a path upwards, as on Windows", "a.zip", _zip({"..\\rows.jsonl": good}), refused="points outside"),
        Case("a path from the root", "a.zip", _zip({"/etc/rows.jsonl": good}), refused="points outside"),
        Case("a drive", "a.zip", _zip({"C:/rows.jsonl": good}), refused="points outside"),
        Case("a link", "a.zip", _linked(), refused="is a link"),
        Case("entries that overlap", "a.zip", _overlapping()),
        Case("3,000 entries", "a.zip", _many_entries(), refused="entries"),
        Case("two files of one kind", "a.zip", _zip({"b.jsonl": good, "a.jsonl": _lines("nope")}), good=10),
        Case("two files of two kinds", "a.zip", _zip({"a.jsonl": good, "b.csv": b"question,answer\na,b\n"}), refused="several kinds"),
        Case(
            "two files with other columns", "a.zip", _zip({"a.jsonl": good, "b.jsonl": b'{"text": "a"}\n'}), refused="none of the columns"
        ),
        Case("a file and its description", "a.zip", _zip({"a.jsonl": good, "README.md": b"# Read me", ".hidden": b"x"}), good=5),
        Case("no data in a zip", "a.zip", _zip({"a.py": b"print()"}), refused="holds no data file"),
        Case("UTF-16 cut off", "a.jsonl", good.decode().encode("utf-16")[:-1]),
        Case("half UTF-8, half Latin", "a.csv", "question,answer\nä,ö\n".encode() * 5 + "ü,ß\n".encode("latin-1") * 5),
        Case("all rows bad", "a.jsonl", b"nope\n" * 1000, refused="Not valid JSON"),
        Case("no known columns", "a.jsonl", b'{"foo": 1, "bar": 2}\n', refused="fit no known format"),
    ]


def cases(seed: int = SEED) -> Iterator[Case]:
    """Every case; the same ones for the same seed."""
    yield from _own_cases()
    yield from damaged(seed)


def damaged(seed: int = SEED) -> Iterator[Case]:
    """Each kind of file with each kind of damage."""
    chance = random.Random(seed)
    for filename, make in WHOLE.items():
        for kind, damage in DAMAGE.items():
            for number in range(ROUNDS):
                yield Case(f"{filename}: {kind} {number}", filename, damage(make(_rows(chance)), chance))


def main(home: Path) -> None:
    """Add each file that a line of stdin names to a new studio."""
    from studio import settings
    from studio.db import migrations
    from studio.db.session import database
    from studio.services.datasets import DatasetService

    at = settings.load({"STUDIO_HOME": str(home)})
    at.make_folders()
    db = database(at.db_url, at.sqlite_journal)
    migrations.migrate(db)
    service = DatasetService(at, db, None)  # type: ignore[arg-type]
    for line in sys.stdin:
        path = Path(line.removesuffix("\n"))
        strict = _outcome(service, path, skip_bad=False)
        skipping = _outcome(service, path, skip_bad=True) if strict.get("problems") else strict
        peak = _peak_mb()
        print(json.dumps({"peak_mb": peak, "strict": strict, "skipping": skipping}), flush=True)


def _outcome(service: Any, path: Path, skip_bad: bool) -> dict[str, Any]:
    from studio.errors import StudioError

    try:
        added = service.add(path, skip_bad=skip_bad)
        service.delete(added.id)
        return {"rows": added.rows, "problems": [problem.model_dump() for problem in added.problems]}
    except StudioError as exc:
        return {"message": exc.message, "fix": exc.fix, "problems": exc.details.get("problems", [])}
    except Exception:  # noqa: BLE001 - what must never happen is recorded
        return {"traceback": traceback.format_exc()}


def _peak_mb() -> float:
    """Of this program alone: where Linux tells, since ru_maxrss begins with the memory of whoever started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
