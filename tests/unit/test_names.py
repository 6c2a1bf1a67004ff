"""One name stands for one thing: no two classes of the product have the same name, and no module hides behind a folder."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for folder in ("studio", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_class_name_stands_for_two_things() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))

    assert len(found) > 200
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_module_shares_its_import_name_with_a_folder() -> None:
    assert [str(path) for path in FILES if path.with_suffix("").is_dir()] == []
