"""English prose for pretraining, from the docstrings of Python's standard library: everyone who runs the script has it. Knows no tokens."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from pathlib import Path

SENTENCE = re.compile(r"[A-Z][A-Za-z ,;:'()\-]{30,}[.!?]")


def paragraphs() -> list[str]:
    """Prose paragraphs of every module's docstrings, in order of path, without doubles. They vary with the version of Python."""
    found: dict[str, None] = {}
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts and "test" not in path.parts:
            for docstring in _docstrings(path):
                for block in re.split(r"\n\s*\n", docstring):
                    text = " ".join(block.split())
                    if _is_prose(text):
                        found[text] = None
    return list(found)


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # some files of lib2to3 are Python 2
        return []
    nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return 60 <= len(text) <= 700 and letters > 0.9 * len(text) and bool(SENTENCE.search(text)) and text.isascii()


def sources(count: int, rng: random.Random, lines: int = 25) -> list[str]:
    """Pieces of the standard library's code, drawn by `rng`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in sorted(root.glob("*.py")) if path.stat().st_size > 4000]
    found = []
    for path in rng.choices(paths, k=count):
        text = path.read_text("utf-8", errors="replace").splitlines()
        start = rng.randrange(max(1, len(text) - lines))
        found.append("\n".join(text[start : start + lines]))
    return found
