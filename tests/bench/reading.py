"""A JSON-lines file of a million rows into the studio, side by side with `datasets.load_dataset` and pandas on the same file.

Every measure runs in a fresh child, the ways taking turns, so that other work on the machine hits all of them; a ratio is the median
of the rounds' own ratios. The file is in the page cache for all; `load_dataset` gets a new cache of its own each time.
`python -m tests.bench.reading [ROWS]` prints it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

ROWS = 1_000_000
ROUNDS = 3
WORDS = 5000
TEXTS = 20_000


def run(rows: int = ROWS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio."""
    with tempfile.TemporaryDirectory() as name:
        path, small = Path(name) / "rows.jsonl", Path(name) / "small.jsonl"
        size = write(path, rows)
        write(small, rows // 10)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, results in found.items():
                results.append(_child(way, path, name))
        memory = _child("add", small, name)
    studio, theirs = found["add"], found["load_dataset"]
    entries = [_entry(way, results, rows, studio) for way, results in found.items()]
    ratio = round(studio[0]["peak_mb"] / memory["peak_mb"], 2)
    smaller = (
        f"{memory['peak_mb']:.0f} MB on {rows // 10:,} rows; {statistics.median(one['peak_mb'] for one in theirs):.0f} MB load_dataset"
    )
    peak = round(max(one["peak_mb"] for one in studio))
    return [
        *entries,
        {"measure": "peak memory of data add", "value": peak, "unit": "MB", "against": smaller, "ratio": ratio},
        {"measure": "the file", "value": round(size / 1e6), "unit": "MB", "against": f"{rows:,} rows", "ratio": None},
    ]


def write(path: Path, rows: int, seed: int = 1) -> int:
    """Rows as Alpaca has them; returns the bytes."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(WORDS)]
    texts = [" ".join(chance.choices(words, k=chance.randint(4, 30))) for _ in range(TEXTS)]
    with path.open("wb") as file:
        for number in range(rows):
            row = {
                "instruction": f"{number}: {chance.choice(texts)}?",
                "input": chance.choice(texts) if number % 10 == 0 else "",
                "output": chance.choice(texts),
            }
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path.stat().st_size


def _entry(way: str, results: list[dict[str, float]], rows: int, studio: list[dict[str, float]]) -> dict[str, Any]:
    seconds = statistics.median(one["seconds"] for one in results)
    work = statistics.median(one["processor_s"] for one in results)
    ratio = round(statistics.median(other["seconds"] / own["seconds"] for own, other in zip(studio, results, strict=True)), 2)
    against = f"{seconds:.2f} s, {work:.2f} s of processor"
    return {"measure": WAYS[way][0], "value": round(rows / seconds), "unit": "rows/s", "against": against, "ratio": ratio}


def _child(way: str, path: Path, folder: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as home:
        environment = {**os.environ, "STUDIO_HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-m", "tests.bench.reading", "--child", way, str(path)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


# in the child: what is imported and opened before the clock starts, and the work


def _add(path: Path) -> Callable[[], int]:
    from studio import settings
    from studio.db import migrations
    from studio.db.session import database
    from studio.services.datasets import DatasetService

    at = settings.load()
    at.make_folders()
    db = database(at.db_url, at.sqlite_journal)
    migrations.migrate(db)
    service = DatasetService(at, db, None)  # type: ignore[arg-type]
    return lambda: int(service.add(path).rows)


def _check(path: Path) -> Callable[[], int]:
    from studio.datasets.ingest import open_ingest

    def work() -> int:
        with open_ingest(path) as ingest:
            return sum(batch.rows for batch in ingest.batches())

    return work


def _parse(path: Path) -> Callable[[], int]:
    def work() -> int:
        with path.open("rb") as file:
            return sum(1 for line in file if orjson.loads(line))

    return work


def _load_dataset(path: Path) -> Callable[[], int]:
    import datasets

    return lambda: len(datasets.load_dataset("json", data_files=str(path), split="train"))


def _pandas(path: Path) -> Callable[[], int]:
    import pandas

    return lambda: len(pandas.read_json(path, lines=True))


WAYS: dict[str, tuple[str, Callable[[Path], Callable[[], int]]]] = {
    "add": ("data add: read, checked, mapped, hashed, stored", _add),
    "check": ("of that: read, checked and mapped", _check),
    "parse": ("orjson alone: each line to a dict, no check", _parse),
    "load_dataset": ("datasets.load_dataset (json)", _load_dataset),
    "pandas": ("pandas.read_json(lines=True)", _pandas),
}


def child(way: str, path: Path) -> None:
    work = WAYS[way][1](path)
    started, before = time.perf_counter(), time.process_time()
    rows = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "processor_s": processor, "peak_mb": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    else:
        for found in run(*map(int, sys.argv[1:2])):
            print(f"{found['measure']:<52} {found['value']:>12,} {found['unit']:<8} {found['against']}   ratio {found['ratio']}")
