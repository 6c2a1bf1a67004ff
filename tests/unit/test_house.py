"""Limits that keep the code readable: long files, conditional expressions and untyped dictionaries creep in one at a time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400  # of a file
MOST_CONDITIONAL_EXPRESSIONS = 15  # per 1,000 lines
MOST_UNTYPED = 40  # dictionaries of which the type says nothing
TYPED = (
    "services",
    "api",
    "commands",
    "records.py",
    "records",
)  # in studio/: what people see passes through these


def sources(*places: Path) -> Iterator[tuple[str, str]]:
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")


PRODUCT = list(sources(ROOT / "studio", ROOT / "jobs"))


def test_no_file_is_too_long_to_read() -> None:
    assert {name: lines for name, text in PRODUCT if (lines := len(text.splitlines())) > MOST_LINES} == {}


def test_conditional_expressions_are_few() -> None:
    found = {name: sum(isinstance(node, ast.IfExp) for node in ast.walk(ast.parse(text))) for name, text in PRODUCT}
    lines = sum(len(text.splitlines()) for _, text in PRODUCT)

    most = sorted(found.items(), key=lambda pair: -pair[1])[:20]
    assert sum(found.values()) / lines * 1000 <= MOST_CONDITIONAL_EXPRESSIONS, most


def test_no_conditional_expression_is_inside_another() -> None:
    assert [
        f"{name}:{inner.lineno}"
        for name, text in PRODUCT
        for outer in ast.walk(ast.parse(text))
        if isinstance(outer, ast.IfExp)
        for part in (outer.body, outer.test, outer.orelse)
        for inner in ast.walk(part)
        if isinstance(inner, ast.IfExp)
    ] == []


def untyped(text: str) -> int:
    """Dictionaries of which the type says nothing. Options are taken as Mapping[str, Any]: they carry their library's names."""
    return len(re.findall(r"\bdict\[str, Any\]|\b\w+\[str, object\]", text))


def test_what_people_see_has_types() -> None:
    found = {name: count for name, text in sources(*(ROOT / "studio" / place for place in TYPED)) if (count := untyped(text))}

    assert sum(found.values()) <= MOST_UNTYPED, found


def test_the_readme_names_files_that_are_there() -> None:
    named = re.findall(r"`((?:studio|jobs|static|tests)/[\w/.-]+)`", (ROOT / "README.md").read_text("utf-8"))

    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists()] == []
