"""Texts of the page: no name of a class among them, and nothing said of a row that it does not say itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import studio
from studio.types import Example, Message, Role
from studio.ui import pieces

PACKAGE = Path(studio.__file__).parent
CAMEL = re.compile(r"\b[A-Z][a-z]+(?:[A-Z][a-z0-9]+)+\b")


def trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def classes() -> set[str]:
    return {node.name for _, tree in trees(PACKAGE) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def texts(tree: ast.Module) -> Iterator[str]:
    """Strings of a module, without those that stand alone: documentation."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def test_no_text_of_the_page_is_the_name_of_a_class() -> None:
    # red when a class is renamed and a word of a label with it
    known = classes()
    assert "PendingReport" in known
    found = [(path.name, text) for path, tree in trees(PACKAGE / "ui") for text in texts(tree) if known & set(CAMEL.findall(text))]
    templates = [
        (path.name, name)
        for path in sorted((PACKAGE / "ui" / "templates").glob("*.html"))
        for name in known & set(CAMEL.findall(path.read_text(encoding="utf-8")))
    ]
    assert found + templates == []


@pytest.mark.parametrize(("label", "said"), [(True, "label: good"), (False, "label: bad"), (None, "")])
def test_only_a_row_with_a_label_shows_one(label: bool | None, said: str) -> None:
    row = Example(messages=[Message(role=Role.USER, content="Hi")], label=label)
    shown = pieces.piece("examples", rows=[row], first=1, marked=0, editable=False)
    assert re.findall(r"label: \w+", shown) == [said] * bool(said)
    assert "Hi" in shown and "None" not in shown
