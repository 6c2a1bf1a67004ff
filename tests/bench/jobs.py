"""Jobs beside the bare script that `studio jobs script` writes for them, and the database in a crowd: `python -m tests.bench.jobs`.

From a launch to its first step: a trainer kept ready, a cold one, and the script, whose clock starts with its process; each
round measures all three, one after the other. Then tokens per second of whole trainings, job and script in turn; what
watching a training adds to its steps; and eight writers with twenty readers on one database.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from jobs.rundir import RunDir
from studio import settings as studio_settings
from studio.catalogue import hardware
from studio.catalogue.demos import DEMOS
from studio.records import ENDED
from studio.services import Studio
from studio.settings import PACKAGE_ROOT
from tests.workers import row, wait_for

MOST_BEYOND_S, LEAST_SPEED, MOST_WATCHING = 1.0, 0.97, 1.03
LONG_STEPS, BLOCKS = 200, 150
PARTS = ("first", "speed", "watching", "crowd")
UNWATCHED = {"sample_answers": 0, "measure_drift": False}
OPTIONS = {**DEMOS["router"].options, "max_steps": 2, "save_steps": 2, "eval_steps": 2}


@contextmanager
def worker(*arguments: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.worker", "--queue", "gpu", *arguments], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        assert process.stdin
        process.stdin.close()


def wait_until_calm(process: psutil.Process) -> None:
    """Until neither the worker nor a trainer that it keeps ready has anything to do."""

    def used() -> float:
        return sum(sum(member.cpu_times()[:2]) for member in [process, *process.children()])

    def is_calm() -> bool:
        before = used()
        time.sleep(2)
        return used() - before < 0.2

    wait_for(is_calm, timeout=300)


def launch(studio: Studio, dataset: str, name: str, **options: Any) -> tuple[float, str]:
    """Seconds from the launch to its first step, and the job."""
    begun = time.time()
    job = studio.jobs.submit(data=dataset, base_model="starter", recipe="qlora-sft", options={**OPTIONS, **options}, name=name)
    wait_for(lambda: row(studio.db, job.id).status in ENDED, timeout=300)
    assert row(studio.db, job.id).status == "SUCCEEDED", row(studio.db, job.id).reason
    events = RunDir(Path(job.run_dir)).attempt(1).read_events(0)[0]
    return next(event["at"] for event in events if event["type"] == "progress") - begun, job.id


def bare(studio: Studio, job: str, folder: Path) -> tuple[float, float]:
    """Seconds from the start of the exported script to the first loss that it prints, and of its training."""
    script = folder / "bare.py"
    studio.jobs.script(job, script)
    threads = str(hardware.thread_budget("trainer"))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads}
    begun, first, said = time.time(), 0.0, []
    with subprocess.Popen(
        [sys.executable, str(script), str(folder / "adapter")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if "'loss'" in line and not first:
                first = time.time() - begun
    if not first or process.returncode:
        raise RuntimeError("the bare script failed: " + "".join(said[-5:]))
    return first, float(json.loads(said[-1])["seconds"])


def open_studio(home: Path) -> tuple[Studio, str]:
    os.environ["STUDIO_HOME"] = str(home)
    os.environ["STUDIO_ENGINE_URL"] = "http://127.0.0.1:9"  # no engine has to give way
    studio = Studio.open(studio_settings.load())
    return studio, studio.datasets.add(DEMOS["router"].train_path).id


def measure(studio: Studio, dataset: str, repeats: int, home: Path) -> dict[str, float]:
    """Seconds to the first step of each kind: medians."""
    seconds: dict[str, list[float]] = {"ready": [], "cold": [], "bare": []}
    for number in range(repeats):
        with worker() as process:
            wait_for(process.children, timeout=120)
            wait_until_calm(process)
            taken, job = launch(studio, dataset, f"ready-{number}")
        seconds["ready"].append(taken)
        with worker("--keep-none-ready") as process:
            wait_until_calm(process)
            seconds["cold"].append(launch(studio, dataset, f"cold-{number}")[0])
        seconds["bare"].append(bare(studio, job, home)[0])
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def speeds(studio: Studio, dataset: str, repeats: int, home: Path) -> dict[str, float]:
    """Tokens per second of whole trainings, evaluations and checkpoints counted: medians."""
    found: dict[str, list[float]] = {"watched": [], "unwatched": [], "bare": []}
    steps = {"max_steps": LONG_STEPS, "save_steps": LONG_STEPS // 5, "eval_steps": LONG_STEPS // 5}
    for number in range(repeats):
        with worker("--keep-none-ready"):
            for kind, options in (("watched", steps), ("unwatched", {**steps, **UNWATCHED})):
                job = launch(studio, dataset, f"{kind}-{number}", **options)[1]
                result = row(studio.db, job).result
                found[kind].append(result["tokens"] / result["seconds"])
        found["bare"].append(result["tokens"] / bare(studio, job, home)[1])
    return {kind: statistics.median(values) for kind, values in found.items()}


def watching(blocks: int) -> tuple[float, float, float]:
    """CPU time of a step with all that is watched, beside one without: the median of blocks of four steps and its 95 % interval."""
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        found = _child("_steps", folder, str(blocks))
    ratios = [on / off for on, off in zip(found["on"], found["off"], strict=True)]
    chance = random.Random(0)
    drawn = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), drawn[49], drawn[1949]


def _child(module: str, *arguments: str) -> Any:
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE_ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def run(repeats: int = 3, blocks: int = BLOCKS, parts: Sequence[str] = PARTS) -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio."""
    entries = []
    with tempfile.TemporaryDirectory(prefix="studio-bench-", ignore_cleanup_errors=True) as home:
        studio, dataset = open_studio(Path(home))
        if "first" in parts:
            entries += _told_first(measure(studio, dataset, repeats, Path(home)))
        if "speed" in parts:
            entries += _told_speed(speeds(studio, dataset, repeats, Path(home)))
        studio.db.dispose()
    if "watching" in parts:
        entries.append(_told_watching(blocks))
    if "crowd" in parts:
        with tempfile.TemporaryDirectory(prefix="studio-bench-", ignore_cleanup_errors=True) as home:
            entries.append(_told_crowd(_child("_crowd", home)))
    return entries


def _told_first(first: Mapping[str, float]) -> list[dict[str, Any]]:
    against = f"bare script {first['bare']:.2f} s"
    entries = [_entry(f"launch to first step, trainer {kind}", first[kind], "s", against, first["bare"]) for kind in ("ready", "cold")]
    return [*entries, _entry("beyond the bare script", first["ready"] - first["bare"], "s", f"limit {MOST_BEYOND_S:g} s")]


def _told_speed(speed: Mapping[str, float]) -> list[dict[str, Any]]:
    against = f"bare script {speed['bare']:,.0f}"
    plain = _entry("speed of a job, nothing watched", speed["unwatched"], "tokens/s", f"{against}, limit {LEAST_SPEED}", speed["bare"])
    return [plain, _entry("speed of a job, samples and drift watched", speed["watched"], "tokens/s", against, speed["bare"])]


def _told_watching(blocks: int) -> dict[str, Any]:
    middle, low, high = watching(blocks)
    interval = f"95 % interval {low:.3f}-{high:.3f}, {blocks} blocks of four steps, limit {MOST_WATCHING}"
    return _entry("CPU of a step, all metrics on / off", middle, "", interval, 1.0, digits=3)


def _told_crowd(crowd: Mapping[str, Any]) -> dict[str, Any]:
    told = ", ".join(f"{crowd[f'{kind}s']:,} {kind}s p95 {crowd[f'{kind}_p95_s'] * 1000:.0f} ms" for kind in ("write", "read"))
    return _entry("8 writers and 20 readers: lock errors", crowd["errors"], "", told)


def _entry(measure: str, value: float, unit: str, against: str, beside: float | None = None, digits: int = 2) -> dict[str, Any]:
    ratio = round(value / beside, 3) if beside else None
    return {"measure": measure, "value": round(value, digits), "unit": unit, "against": against, "ratio": ratio}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.jobs", description="Jobs beside bare scripts.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--part", action="append", choices=PARTS, help="measure only this; may be given more than once")
    arguments = parser.parse_args()
    for entry in run(arguments.repeats, arguments.blocks, arguments.part or PARTS):
        ratio = f": {entry['ratio']}" if entry["ratio"] is not None else ""
        print(f"{entry['measure']:<44} {entry['value']:>10,} {entry['unit']}  ({entry['against']}{ratio})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
