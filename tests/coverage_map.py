"""Which test files execute a line of the product: each runs once under coverage, its child processes too.

Needs trees with environments of their own, made by tests.mutation, and runs a file in each at a time. `long` tests are left out.
What was found is kept in the user's cache folder, for each test file as long as its text stays the same; whether it passed, as long
as the product stays the same too. Lines are known by their text, so that a map holds for a product that has changed elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import coverage
from platformdirs import user_cache_path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("studio", "jobs")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
CACHE = user_cache_path("adapter-studio") / "coverage_map.json"
LIMIT_S = 400  # for one test file under coverage; the slowest take a minute or two without
# begins coverage in every Python process of the tree's environment, where the variable asks for it
STARTS_COVERAGE = 'import os; exec("import coverage; coverage.process_startup()" if "COVERAGE_PROCESS_START" in os.environ else "")'
CONFIG = """
[run]
source = {source}
data_file = {data}
parallel = true
sigterm = true
patch = _exit
disable_warnings = no-data-collected, module-not-measured, module-not-imported, couldnt-parse, no-sysmon
"""


@dataclass
class Entry:
    """One test file as it was when it last ran."""

    text: str  # hash of the test file and its helpers
    product: str  # hash of the product then
    passed: bool
    seconds: float
    lines: dict[str, list[str]] = field(default_factory=dict)  # by source file: texts of the lines that it executed


NOTHING_CHOSEN = 5  # pytest's exit status where a file holds `long` tests alone
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?\.py)", re.MULTILINE)


def run(tree: Path, files: list[str], limit_s: float, *extra: str, variables: dict[str, str] | None = None) -> tuple[str, list[str]]:
    """Run test files in a tree: "passed", "failed" or "timeout", and the files that failed."""
    command = [
        str(tree / ".venv/bin/python"),
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-m",
        "not long",
        *extra,
        *files,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STUDIO_TEST_DATA": str(ROOT.parent / "shared"), **(variables or {})}
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, cwd=tree, stdout=output, stderr=subprocess.DEVNULL, env=environment, start_new_session=True) as process,
    ):
        try:
            status = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return "timeout", []
        output.seek(0)
        failed = FAILED.findall(output.read().decode("utf-8", "replace"))
    if status == NOTHING_CHOSEN:
        status = 0
    return "failed" if status else "passed", failed


class Trees:
    """Copies of the tree, each of them used by one thread at a time."""

    def __init__(self, trees: list[Path]) -> None:
        self._count = len(trees)
        self._free: SimpleQueue[Path] = SimpleQueue()
        for tree in trees:
            self._free.put(tree)

    @contextmanager
    def one(self) -> Iterator[Path]:
        tree = self._free.get()
        try:
            yield tree
        finally:
            self._free.put(tree)

    def each(self, work: Callable[[Item], Outcome], items: Iterable[Item]) -> Iterator[Outcome]:
        """What `work` returns for each item, in their order, as many at a time as there are trees."""
        with ThreadPoolExecutor(self._count) as pool:
            yield from pool.map(work, items)


class CoverageMap:
    """What each test file executes; `text_of` gives the text of a test file with that of its helpers."""

    def __init__(self, trees: Trees, text_of: Callable[[str], str]) -> None:
        self.trees = trees
        self.text_of = text_of
        self._lock = threading.Lock()
        self.product = _hash(*(path.read_bytes() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))))
        self.entries: dict[str, Entry] = {}
        if CACHE.is_file():
            self.entries = {file: Entry(**entry) for file, entry in json.loads(CACHE.read_bytes()).items()}

    def complete(self, files: list[str], keep_s: float = math.inf) -> None:
        """Run the test files whose text is not known yet. One that is known in an older text and took longer than `keep_s` is not run again."""
        new = [file for file in files if file not in self.entries]
        changed = [file for file in files if file not in new and self.entries[file].text != _hash(self.text_of(file).encode())]
        kept = [file for file in changed if self.entries[file].seconds > keep_s]
        for file in kept:
            print(f"as it was when the map was made: {file}", flush=True)
        for _ in self.trees.each(self._take, [file for file in [*new, *changed] if file not in kept]):
            pass

    def passes(self, file: str, tree: Path) -> bool:
        """Whether a test file passes without any change of the product."""
        if self.entries[file].product != self.product:
            self._take_in(tree, file)
        return self.entries[file].passed

    def _take(self, file: str) -> None:
        with self.trees.one() as tree:
            self._take_in(tree, file)

    def _take_in(self, tree: Path, file: str) -> None:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            config = Path(place) / "coveragerc"
            source = ",".join(str(tree / package) for package in PACKAGES)
            config.write_text(CONFIG.format(source=source, data=Path(place) / "data"))
            status, _ = run(tree, [file], LIMIT_S, variables={"COVERAGE_PROCESS_START": str(config)})
            lines = self._lines(tree, Path(place))
        seconds = time.monotonic() - began
        print(f"control: {file} {status} [{seconds:.0f} s]", flush=True)
        with self._lock:
            self.entries[file] = Entry(_hash(self.text_of(file).encode()), self.product, status == "passed", seconds, lines)
            CACHE.parent.mkdir(parents=True, exist_ok=True)
            part = CACHE.with_suffix(f".{os.getpid()}")  # a map that was half written when this process ended would be lost
            part.write_text(json.dumps({name: asdict(entry) for name, entry in self.entries.items()}))
            part.replace(CACHE)

    def _lines(self, tree: Path, place: Path) -> dict[str, list[str]]:
        found: dict[str, set[str]] = {}
        for file in place.glob("data*"):
            data = coverage.CoverageData(basename=str(file))
            try:
                data.read()
            except coverage.CoverageException:  # a process that was killed while it wrote
                continue
            for source in data.measured_files():
                text = Path(source).read_text(encoding="utf-8").splitlines()
                executed = found.setdefault(Path(source).relative_to(tree).as_posix(), set())
                executed |= {text[number - 1].strip() for number in data.lines(source) or () if number <= len(text)}
        return {source: sorted(texts) for source, texts in found.items()}


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
