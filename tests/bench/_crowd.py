"""Writers and readers of one studio database, as many as never meet in life: `python -m tests.bench._crowd HOME`; prints JSON.

Each writer ingests points of a job of its own in transactions of twenty; each reader asks for a job's curves every second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.queues import Queue
from typing import Any

from sqlalchemy.exc import OperationalError

from studio import settings as studio_settings
from studio.db import lifecycle
from studio.db.models import JobRow
from studio.services import Studio

WRITERS, READERS, SECONDS, BATCH = 8, 20, 8.0, 20


def write(number: int, said: Queue[Any]) -> None:
    studio = Studio.open(studio_settings.load())
    with studio.db.write() as session:
        lifecycle.submit(session, JobRow(id=f"job{number}", kind="train", queue="none", name=f"job-{number}"))
        held = lifecycle.claim(session, f"job{number}", f"writer {number}", None)
    assert held
    took, errors, step, ends = [], 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < ends:
        events = [{"type": "progress", "step": step + n, "loss": 1.0, "max_steps": 10**6} for n in range(BATCH)]
        begun = time.monotonic()
        try:
            with studio.db.write() as session:
                lifecycle.ingest(session, held, events, step)
                lifecycle.beat(session, held)
            step += BATCH
        except OperationalError:
            errors += 1
        took.append(time.monotonic() - begun)
        time.sleep(0.02)
    said.put(("write", took, errors, step))


def read(number: int, said: Queue[Any]) -> None:
    studio = Studio.open(studio_settings.load())
    took, errors, ends = [], 0, time.monotonic() + SECONDS
    while time.monotonic() < ends:
        begun = time.monotonic()
        try:
            if jobs := studio.jobs.list():
                studio.jobs.curves(jobs[number % len(jobs)].id)
        except OperationalError:
            errors += 1
        took.append(time.monotonic() - begun)
        time.sleep(1.0)
    said.put(("read", took, errors, 0))


def main() -> None:
    os.environ["STUDIO_HOME"] = sys.argv[1]
    studio = Studio.open(studio_settings.load())
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    studio.db.dispose()
    crowd = [context.Process(target=write, args=(n, said)) for n in range(WRITERS)]
    crowd += [context.Process(target=read, args=(n, said)) for n in range(READERS)]
    for member in crowd:
        member.start()
    told = [said.get(timeout=120) for _ in crowd]
    for member in crowd:
        member.join()
    writes = sorted(second for kind, took, _, _ in told if kind == "write" for second in took)
    reads = sorted(second for kind, took, _, _ in told if kind == "read" for second in took)
    figures = {"errors": sum(one[2] for one in told), "points": sum(one[3] for one in told)}
    p95 = {"write_p95_s": writes[int(len(writes) * 0.95)], "read_p95_s": reads[int(len(reads) * 0.95)]}
    print(json.dumps({**figures, **p95, "writes": len(writes), "reads": len(reads)}))


if __name__ == "__main__":
    main()
