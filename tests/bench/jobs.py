"""From a launch to its first step: a trainer kept ready, a cold one, and the bare script: `python -m tests.bench.jobs`.

The bare script is what `studio jobs script` writes for the same job; its clock starts with its process, the studio's with
the launch. Each round measures all three, one after the other. The promise: at most a second beyond the bare script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from jobs.rundir import RunDir
from studio import settings as studio_settings
from studio.catalogue import hardware
from studio.catalogue.starter.demos import DEMOS
from studio.db import lifecycle
from studio.services import Studio
from studio.settings import PACKAGE_ROOT
from tests.workers import row, wait_for

MOST_BEYOND_S = 1.0
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


def launch(studio: Studio, dataset: str, name: str) -> tuple[float, str]:
    """Seconds from the launch to its first step, and the job."""
    begun = time.time()
    job = studio.jobs.submit(data=dataset, base_model="starter", recipe="qlora-sft", options=OPTIONS, name=name)
    wait_for(lambda: row(studio.db, job["id"]).status in lifecycle.ENDED, timeout=300)
    assert row(studio.db, job["id"]).status == "SUCCEEDED", row(studio.db, job["id"]).reason
    events = RunDir(Path(job["run_dir"])).attempt(1).read_events(0)[0]
    return next(event["at"] for event in events if event["type"] == "progress") - begun, job["id"]


def bare(studio: Studio, job: str, folder: Path) -> float:
    """Seconds from the start of the exported script to the first loss that it prints."""
    script = folder / "bare.py"
    script.write_text(studio.jobs.script(job)["script"], encoding="utf-8")
    threads = str(hardware.thread_budget("trainer"))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads}
    begun, said = time.time(), []
    with subprocess.Popen(
        [sys.executable, str(script), str(folder / "adapter")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if "'loss'" in line:
                seconds = time.time() - begun
                process.stdout.read()
                return seconds
    raise RuntimeError("the bare script printed no loss: " + "".join(said[-5:]))


def measure(repeats: int, home: Path) -> dict[str, float]:
    """Seconds to the first step of each kind: medians."""
    os.environ["STUDIO_HOME"] = str(home)
    os.environ["STUDIO_ENGINE_URL"] = "http://127.0.0.1:9"  # no engine has to give way
    studio = Studio.open(studio_settings.load())
    dataset = studio.datasets.add(PACKAGE_ROOT / DEMOS["router"].train_path)["id"]
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
        seconds["bare"].append(bare(studio, job, home))
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def run(repeats: int = 3) -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio."""
    with tempfile.TemporaryDirectory(prefix="studio-bench-", ignore_cleanup_errors=True) as home:
        seconds = measure(repeats, Path(home))
    entries: list[dict[str, Any]] = [
        {
            "measure": f"launch to first step, trainer {kind}",
            "value": round(seconds[kind], 2),
            "unit": "s",
            "against": f"bare script {seconds['bare']:.2f} s",
            "ratio": round(seconds[kind] / seconds["bare"], 2),
        }
        for kind in ("ready", "cold")
    ]
    beyond = seconds["ready"] - seconds["bare"]
    limit = f"limit {MOST_BEYOND_S:g} s"
    return [*entries, {"measure": "beyond the bare script", "value": round(beyond, 2), "unit": "s", "against": limit, "ratio": None}]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.jobs", description="How long a launch takes to its first step.")
    parser.add_argument("--repeats", type=int, default=3)
    entries = run(parser.parse_args().repeats)
    for entry in entries:
        ratio = f": {entry['ratio']}" if entry["ratio"] is not None else ""
        print(f"{entry['measure']:<44} {entry['value']:>10,} {entry['unit']}  ({entry['against']}{ratio})")
    return 0 if entries[-1]["value"] <= MOST_BEYOND_S else 1


if __name__ == "__main__":
    sys.exit(main())
