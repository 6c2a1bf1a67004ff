"""The report on 100,000 rows, every check and every fault among them, in a child of its own: seconds and memory of all its processes.

`python -m tests.bench.report [ROWS]` prints it; `--base-model` has it count tokens with the starter's tokenizer too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from studio.settings import PACKAGE_ROOT, STATIC
from tests import plants

ROWS = 100_000
LIMIT_S = 120.0
STARTER = STATIC / "starter"


def run(count: int = ROWS, model_folder: Path | None = None) -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(folder / "rows.jsonl", count)
        options = {"path": str(folder / "rows.jsonl"), "kind": "sft"}
        if model_folder:
            options["model_folder"] = str(model_folder)
        (folder / "options.json").write_text(json.dumps(options))
        seconds, work, peak = measured(
            [sys.executable, "-m", "studio.datasets.report", str(folder / "options.json"), str(folder / "out.json")]
        )
        made = json.loads((folder / "out.json").read_bytes())
    what = f"report on {count:,} rows ({size / 1024**2:.0f} MiB{', tokens too' if model_folder else ''})"
    found = sum(finding["count"] for finding in made["findings"])
    return [
        {"measure": what, "value": round(seconds, 1), "unit": "s", "against": f"limit {LIMIT_S:g} s", "ratio": round(seconds / LIMIT_S, 2)},
        {"measure": "its processor seconds, all processes", "value": round(work, 1), "unit": "s", "against": "", "ratio": None},
        {"measure": "its rows per second", "value": round(count / seconds), "unit": "rows/s", "against": "", "ratio": None},
        {"measure": "its memory, all processes", "value": round(peak / 1024**2), "unit": "MiB", "against": "", "ratio": None},
        {"measure": "rows in its findings", "value": found, "unit": f"in {len(made['findings'])} checks", "against": "", "ratio": None},
    ]


def write(path: Path, count: int) -> int:
    """Good rows with a few hundred faults; the size in bytes."""
    found, _ = plants.planted(min(count // 2, 2000))
    with path.open("wb") as file:
        for line in plants.lines(found):
            file.write(line)
        for line in plants.lines(plants.rows(count - len(found), seed=3)):
            file.write(line)
    return path.stat().st_size


def measured(command: list[str]) -> tuple[float, float, int]:
    """Seconds, processor seconds, and the greatest sum of resident memory, of a process and its children."""
    began, worked, peak = time.monotonic(), processor_seconds(), 0
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=PACKAGE_ROOT)
    try:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(0.2)
    finally:
        if child.poll() is None:
            child.kill()
    if child.returncode:
        raise SystemExit(f"the report ended with {child.returncode}")
    return time.monotonic() - began, processor_seconds() - worked, peak


def processor_seconds() -> float:
    """Of children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident(process: psutil.Process) -> int:
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.Error:
        pass  # ended meanwhile
    return total


def main() -> None:
    count = next((int(argument) for argument in sys.argv[1:] if argument.isdecimal()), ROWS)
    for entry in run(count, STARTER if "--base-model" in sys.argv else None):
        against = f"  ({entry['against']}: {entry['ratio']})" if entry["against"] else ""
        print(f"{entry['measure']:<44} {entry['value']:>10,} {entry['unit']}{against}")


if __name__ == "__main__":
    main()
