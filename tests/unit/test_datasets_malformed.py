"""A seeded corpus of malformed files: each ends in success or in problems with line, reason and fix, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.malformed import Case, cases, damaged

MAX_PEAK_MB = 300.0

Results = list[tuple[Case, dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What comes of every case, in one child process, so that its peak memory is that of reading."""
    folder = tmp_path_factory.mktemp("malformed")
    return list(_run(folder))


def _run(folder: Path) -> Iterator[tuple[Case, dict[str, Any]]]:
    command = [sys.executable, "-m", "tests.malformed", str(folder / "home")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        for case in cases():
            path = folder / case.filename
            case.write(path)
            child.stdin.write(f"{path}\n")
            child.stdin.flush()
            answer = child.stdout.readline()
            path.unlink()
            assert answer, f"{case.name}: the reader died"
            yield case, json.loads(answer)
        child.stdin.close()
    assert not list((folder / "home" / "cache").iterdir()) and not list((folder / "home" / "datasets").iterdir())


def failing(results: Results, is_wrong: Any) -> dict[str, Any]:
    return {case.name: result for case, result in results if is_wrong(case, result)}


def test_the_corpus_is_large_and_the_same_each_time(results: Results) -> None:
    assert len(results) >= 300
    names = [case.name for case, _ in results]
    assert len(set(names)) == len(names)
    again = {case.name: case.content for case in damaged()}
    assert again == {case.name: case.content for case, _ in results if case.name in again}


def test_no_traceback(results: Results) -> None:
    assert not failing(results, lambda _, result: "traceback" in result["strict"] or "traceback" in result["skipping"])


def test_each_ends_in_rows_or_in_a_reason_with_line_and_fix(results: Results) -> None:
    def is_wrong(_: Case, result: dict[str, Any]) -> bool:
        return any(not _is_explained(result[way]) for way in ("strict", "skipping"))

    assert not failing(results, is_wrong)


def _is_explained(outcome: dict[str, Any]) -> bool:
    problems = outcome["problems"]
    named = all(problem["line"] >= 1 and problem["problem"] and problem["fix"] for problem in problems)
    if "rows" in outcome:
        return named and outcome["rows"] > 0
    return named and bool(problems and outcome["message"] and outcome["fix"]) and "\n" not in outcome["message"]


def test_files_are_refused_for_the_right_reason(results: Results) -> None:
    assert not failing(results, lambda case, result: case.refused not in result["skipping"].get("message", "") and bool(case.refused))


def test_good_rows_are_kept_where_bad_ones_may_be_skipped(results: Results) -> None:
    assert not failing(results, lambda case, result: case.good is not None and result["skipping"].get("rows") != case.good)


def test_memory_stays_small(results: Results) -> None:
    first = next((case.name for case, result in results if result["peak_mb"] > MAX_PEAK_MB), None)
    assert first is None, f"{first}: {results[-1][1]['peak_mb']:.0f} MB"
