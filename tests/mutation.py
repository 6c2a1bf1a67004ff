"""Mutation testing: `python -m tests.mutation --seed 1 --count 60`. Small wrong changes, and whether the related tests notice.

Works in a copy of the tree, mutates one place at a time, and runs the tests that execute that line (tests.coverage_map; making the map
takes as long as the suite, once), else those that mention the module or what it defines. A file whose tests fail is run once without
any change too: one that fails then counts for nothing. Prints one line per mutant and the share killed; exits with 1 below `--wanted`.
"""

from __future__ import annotations

import argparse
import ast
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.coverage_map import STARTS_COVERAGE, CoverageMap, Trees
from tests.coverage_map import run as run_tests

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("studio/evaluation", "studio/db", "studio/services", "studio/catalogue", "studio/engine", "studio/compress", "jobs")
SUITES = ("tests/unit", "tests/integration")
Change = Callable[[Any], object]
LIMIT_S = 400
BOUND_S = 120.0  # of tests per mutant, as long as they took for the map
MAX_FILES = 5  # test files per mutant where no test file executes the line, the closest first

COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: Path
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.what}"


def places(tree: ast.AST) -> list[tuple[int, str, Change]]:
    """(number of the node in `ast.walk`, what is changed, the change) for every small change of this tree."""
    nodes = list(ast.walk(tree))
    left_out = (ast.JoinedStr, ast.Raise, ast.Assert, ast.AnnAssign)  # wording, type narrowing, declarations
    skipped = {id(child) for node in nodes if isinstance(node, left_out) for child in ast.walk(node)}
    return [(index, *change) for index, node in enumerate(nodes) if id(node) not in skipped for change in changes(node)]


def mutated(path: Path, draw: random.Random) -> Mutant | None:
    """One small change of this file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    if not (options := places(tree)):
        return None
    index, what, change = draw.choice(options)
    node = list(ast.walk(tree))[index]
    line = getattr(node, "lineno", 0)
    change(node)
    return Mutant(path, line, what, ast.unparse(ast.fix_missing_locations(tree)))


def changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        new = COMPARISONS[type(node.ops[0])]
        yield f"{ast.unparse(node)}: {new.__name__}", lambda n: n.ops.__setitem__(0, new())
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not isinstance(node.left, ast.Constant | ast.JoinedStr):
        swapped = ARITHMETIC[type(node.op)]
        yield f"{ast.unparse(node)}: {swapped.__name__}", lambda n: setattr(n, "op", swapped())
    if isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{ast.unparse(node)[:80]}: {other.__name__}", lambda n: setattr(n, "op", other())
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and getattr(node, "lineno", 0):
        yield f"{node.value} -> {node.value + 1}", lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.If | ast.While) and "TYPE_CHECKING" not in ast.unparse(node.test):
        yield f"if {ast.unparse(node.test)[:80]}: never", lambda n: setattr(n, "test", ast.Constant(False))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield (
            f"{ast.unparse(node)[:80]}: not dropped",
            lambda n: (setattr(n, "op", ast.UAdd()), setattr(n, "operand", call_bool(n.operand))),
        )


def call_bool(node: ast.expr) -> ast.expr:
    return ast.Call(ast.Name("bool", ast.Load()), [node], [])


@lru_cache
def read(file: Path) -> str:
    """The text of a test file, with that of the helpers in tests/ which it imports."""
    text = file.read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"from tests\.(\w+) import|from tests import (\w+)", text))):
        helper = ROOT / "tests" / f"{name[0] or name[1]}.py"
        if helper.is_file() and helper != file:
            text += helper.read_text(encoding="utf-8")
    return text


@lru_cache
def suites() -> dict[str, str]:
    """The text of each test file, by its path."""
    return {f"{suite}/{file.name}": read(file) for suite in SUITES for file in sorted((ROOT / suite).glob("test_*.py"))}


def mention(module: str) -> re.Pattern[str]:
    """How source and tests import a module or run it."""
    package, _, name = module.rpartition(".")
    return re.compile(rf"\b{re.escape(module)}\b|from {re.escape(package)} import .*\b{name}\b")


@lru_cache
def importers(module: str) -> list[str]:
    """The modules of the product that import this one or run it as a process."""
    wanted = mention(module)
    files = [file.relative_to(ROOT) for place in ("studio", "jobs") for file in sorted((ROOT / place).rglob("*.py"))]
    users = [file for file in files if wanted.search((ROOT / file).read_text(encoding="utf-8"))]
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in users]
    return [name for name in names if name != module]


@lru_cache
def related(path: Path) -> list[str]:
    """Test files that mention the module, those that import it, or what it defines; the closest first.

    A word counts for less the more test files have it; the package's name in the name of a test file counts too.
    """
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    package, _, name = module.rpartition(".")
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    words = [re.compile(rf"\b{re.escape(word)}\b") for word in (name, *defined) if len(word) > 3 and not word.startswith("_")]
    spread = {word: sum(bool(word.search(text)) for text in suites().values()) for word in words}
    users = importers(module)
    scores = {}
    for file, text in suites().items():
        stem = Path(file).stem
        score = 10.0 * bool(mention(module).search(text)) + 3.0 * (name in stem)
        score += sum(4.0 / spread[word] for word in words if word.search(text))
        score += min(4.0, sum(2.0 for user in users if mention(user).search(text))) + 3.0 * (package.rpartition(".")[2] in stem)
        if package.endswith("services"):
            score += 2.0 * len(re.findall(rf"studio\.{name}\.|/api/{name}\b", text)) ** 0.5
        if score > 0:
            scores[file] = score
    return sorted(scores, key=lambda file: -scores[file])


def first_line(node: ast.stmt) -> int:
    """The line where a statement begins, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def header(path: Path, line: int) -> tuple[set[str], bool]:
    """The texts of the lines of the statement at this line, without its body; and whether it stands in a function."""
    source = (ROOT / path).read_text(encoding="utf-8")
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    statement = max((node for node in statements if first_line(node) <= line <= (node.end_lineno or 0)), key=first_line)
    end = statement.end_lineno or line
    if body := getattr(statement, "body", None):
        end = max(statement.lineno, body[0].lineno - 1)
    texts = {text.strip() for text in source.splitlines()[statement.lineno - 1 : end]}
    functions = [node for node in statements if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_function = any(node.lineno < line <= (node.end_lineno or 0) for node in functions)
    return {text for text in texts if any(map(str.isalnum, text))}, in_function


def executing(known: CoverageMap, mutant: Mutant, bound_s: float = BOUND_S) -> list[str]:
    """Test files that execute the mutated line: two that are closest by their text, and those that show most of the module in least time.

    Whoever imports a module executes its constants: there it counts more how much of the module a file executes. One that does not fit
    into the time that is left is passed over for the next.
    """
    texts, in_function = header(mutant.path, mutant.line)
    lines = {file: entry.lines.get(mutant.path.as_posix(), []) for file, entry in known.entries.items()}
    found = [file for file, executed in lines.items() if texts.intersection(executed) and known.entries[file].passed]
    slowness = 1.0 if in_function else 0.5
    found.sort(key=lambda file: -len(lines[file]) / max(1.0, known.entries[file].seconds) ** slowness)
    closest = [file for file in related(mutant.path) if file in found][:2]
    chosen_files: list[str] = []
    left_s = bound_s
    for file in [*closest, *(file for file in found if file not in closest)]:
        if not chosen_files or known.entries[file].seconds <= left_s:
            chosen_files.append(file)
            left_s -= known.entries[file].seconds
    chosen_files.sort(key=lambda file: -len(lines[file]) / max(1.0, known.entries[file].seconds))
    return chosen_files or [file for file in related(mutant.path) if known.entries[file].passed][:MAX_FILES]


def chosen(seed: int, count: int) -> list[Mutant]:
    """The same mutants for the same seed and tree, spread evenly over the places."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        folder = ROOT / PLACES[number % len(PLACES)]
        files = [f for f in sorted(folder.rglob("*.py")) if f.stat().st_size > 600 and "migrations" not in f.parts]
        while True:
            file = draw.choices(files, weights=[f.stat().st_size for f in files])[0].relative_to(ROOT)
            if mutant := mutated(file, draw):
                found.append(mutant)
                break
    return found


def copied(place: Path) -> Path:
    """A copy of the tree with an environment of its own that shares the installed packages."""
    tree = place / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "*_cache", "node_modules", "__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tree / ".venv")], check=True)
    packages = next((tree / ".venv" / "lib").glob("python*")) / "site-packages"
    others = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "0copy.pth").write_text("\n".join([str(tree), *others, STARTS_COVERAGE]) + "\n")
    for script in (Path(sys.executable).parent).glob("studio*"):
        (tree / ".venv" / "bin" / script.name).write_text(f"#!{tree}/.venv/bin/python\nfrom studio.cli import main\nmain()\n")
        (tree / ".venv" / "bin" / script.name).chmod(0o755)
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--wanted", type=float, default=0.0, help="share to be killed, equivalent ones included")
    parser.add_argument("--bound", type=float, default=BOUND_S, help="seconds of tests per mutant, as long as they took for the map")
    parser.add_argument("--keep", type=float, default=math.inf, help="seconds above which a changed test file is not run anew for the map")
    parser.add_argument("--jobs", type=int, default=1, help="files or mutants at a time, each in a copy of the tree")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants to try")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    options = parser.parse_args()
    picked = list(enumerate(chosen(options.seed, options.count), 1))
    if options.only:
        picked = [pair for pair in picked if pair[0] in options.only]
    if options.list:
        for number, mutant in picked:
            print(number, mutant)
        return 0
    killed = 0
    with tempfile.TemporaryDirectory() as place:
        known = CoverageMap(Trees([copied(Path(place) / str(n)) for n in range(options.jobs)]), lambda file: suites()[file])
        known.complete(list(suites()), options.keep)
        outcomes = known.trees.each(lambda pair: tried(known, pair[1], executing(known, pair[1], options.bound)), picked)
        for (number, mutant), (verdict, files) in zip(picked, outcomes, strict=True):
            killed += verdict.startswith("killed")
            print(f"{number:3} {verdict:13} {mutant} [{len(files)} files: {', '.join(Path(file).stem for file in files[:5])}]", flush=True)
    share = killed / len(picked)
    print(f"{killed} of {len(picked)} killed ({share:.0%})")
    return int(share < options.wanted)


def tried(known: CoverageMap, mutant: Mutant, files: list[str]) -> tuple[str, list[str]]:
    """Run these tests with the change in place: the verdict, and the tests. What fails without it too is left out."""
    with known.trees.one() as tree:
        return _tried(known, tree, mutant, files), files


def _tried(known: CoverageMap, tree: Path, mutant: Mutant, files: list[str]) -> str:
    target = tree / mutant.path
    original = target.read_text(encoding="utf-8")
    left = list(files)
    while left:
        target.write_text(mutant.source, encoding="utf-8")
        try:
            status, failed = run_tests(tree, left, LIMIT_S, "-x")
        finally:
            target.write_text(original, encoding="utf-8")
        broken = [file for file in failed if not known.passes(file, tree)]
        if status == "timeout":
            return "killed (time)"
        if not broken:
            return {"passed": "SURVIVED", "failed": "killed"}[status]
        left = [file for file in left if file not in broken]
    return "SURVIVED"


if __name__ == "__main__":
    sys.exit(main())
