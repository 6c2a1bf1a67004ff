"""No benchmark rots: each can be imported, runs when it is asked for by name, and starts only processes that are there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.bench.__main__ as command

TESTS = Path(command.__file__).parent.parent
# no module of a package: the generated client, which it imports, is not here
SCRIPTS = {"clients/list_jobs.py"}
FILES = sorted(
    path for folder in ("bench", "clients", "gpu") for path in (TESTS / folder).glob("*.py") if str(path.relative_to(TESTS)) not in SCRIPTS
)


def module_of(path: Path) -> str:
    return ".".join(("tests", *path.relative_to(TESTS).with_suffix("").parts)).removesuffix(".__init__")


def started(path: Path) -> Iterator[str]:
    """Modules that a file starts with `-m`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.List):
            words = [word.value if isinstance(word, ast.Constant) else None for word in node.elts]
            yield from (str(module) for flag, module in itertools.pairwise(words) if flag == "-m" and module)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_benchmark_can_be_imported(path: Path) -> None:
    # red when a name that it imports has moved
    module = importlib.import_module(module_of(path))
    if path.parent.name == "bench" and not path.stem.startswith("_"):
        assert callable(module.run), "`python -m tests.bench` calls it"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_what_a_benchmark_starts_is_there(path: Path) -> None:
    for module in started(path):
        assert importlib.util.find_spec(module), module


def test_the_check_of_what_is_started_sees_it() -> None:
    assert "tests.bench.reading" in set(started(TESTS / "bench" / "reading.py"))


def test_an_unknown_benchmark_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nothing"]) == 1
    said = capsys.readouterr().err
    assert "nothing" in said and "reading" in said and "_crowd" not in said
