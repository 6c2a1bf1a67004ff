"""Every refusal says what would work, and every list of alternatives is complete or says how many more there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.errors import listed
from studio.services import naming

ROOT = Path(__file__).parents[2]
REFUSALS = {"StudioError", "NotFoundError", "TakenError", "DatasetError", "ConfigError", "ModelError", "EngineError", "bad_request"}


def without_fix(source: str) -> Iterator[int]:
    """Lines that make an error whose fix is left out or empty."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(isinstance(value, ast.Starred) for value in node.args):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name not in REFUSALS or any(keyword.arg is None for keyword in node.keywords):
            continue
        fixes = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "fix")]
        if not fixes or (isinstance(fixes[0], ast.Constant) and not fixes[0].value):
            yield node.lineno


def test_no_refusal_is_without_a_fix() -> None:
    files = [file for part in ("studio", "jobs") for file in (ROOT / part).rglob("*.py")]
    assert [f"{file}:{line}" for file in files for line in without_fix(file.read_text(encoding="utf-8"))] == []
    assert list(without_fix('raise StudioError("x")\nraise ModelError("x", "")\nraise StudioError("x", "y")')) == [1, 2]


@pytest.mark.parametrize(("count", "end"), [(1, "n0"), (21, "n20"), (22, "n19 and 2 more"), (1500, "n19 and 1,480 more")])
def test_a_list_is_complete_or_says_how_many_more_there_are(count: int, end: str) -> None:
    assert listed([f"n{number}" for number in range(count)]).endswith(end)


def test_an_unknown_name_is_answered_with_all_that_there_are() -> None:
    known = [f"model{number}" for number in range(16)]
    sentence = naming.suggest("xyz", known)
    assert all(name in sentence for name in known) and "more" not in sentence
    assert naming.suggest("xyz", map(str, range(100))).endswith(" and 80 more.")
