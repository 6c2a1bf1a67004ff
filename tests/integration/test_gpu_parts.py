"""The reduced parts of `make gpu`, by a Python that has only what a machine of `make gpu-wheels` has; and a machine without a card."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.settings import PACKAGE_ROOT
from tests.gpu import lean, registry


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STUDIO_")}
    command = [str(program), "-m", "tests.gpu", *arguments]
    return subprocess.run(command, env={**kept, "PYTHONPATH": str(PACKAGE_ROOT)}, cwd=PACKAGE_ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lean.make(tmp_path_factory.mktemp("lean"))


@pytest.fixture(scope="module")
def reduced(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.CompletedProcess[str], Path]]:
    """All parts of one run: its imports are done once."""
    out = tmp_path_factory.mktemp("gpu")
    yield run(program, "--reduced", "--out", str(out), "--within", "550"), out


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", registry.NAMES)
def test_a_part_keeps_its_promise_where_it_is_reduced(name: str, reduced: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    # red when the product has moved on and a part has not, or needs a package that such a machine does not have
    done, out = reduced
    lines = (out / "figures.jsonl").read_text("utf-8").splitlines()
    found: dict[str, Any] = next(line for line in map(json.loads, lines) if line["part"] == name)
    assert found["verdict"] == "kept", f"{found['said']} {found['missed']} {done.stderr[-1000:]}"
    assert found["reduced"] and found["figures"] and found["hardware"]["torch"] and found["date"]
    assert any(line.startswith(name) for line in (out / "table.txt").read_text("utf-8").splitlines())


def test_every_part_is_reported_as_it_ends_and_nothing_is_left_behind(reduced: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = reduced
    printed = done.stdout.splitlines()
    assert [json.loads(line)["part"] for line in printed if line.startswith("{")] == list(registry.NAMES)
    assert printed[-1] == f"{len(registry.NAMES)} of {len(registry.NAMES)} parts kept their promise"
    assert done.returncode == 0 and sorted(path.name for path in out.iterdir()) == ["figures.jsonl", "table.txt"]


def test_without_a_card_it_says_in_one_line_what_it_needs(program: Path, tmp_path: Path) -> None:
    done = run(program, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("make gpu needs")
