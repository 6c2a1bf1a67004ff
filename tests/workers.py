"""Real workers as child processes, and what a test wants to know of them and of their trainers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from studio.db.models import JobRow
from studio.db.session import Database

T = TypeVar("T")
TRAINERS = {"jobs.train", "tests.chaos.stand_in"}
PATIENCE_S = 300.0  # a trainer imports torch first, and this machine may be busy


@contextmanager
def worker(queue: str = "gpu", module: str = "jobs.worker") -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the STUDIO_HOME in the environment; killed at the end with whatever it has started."""
    process = subprocess.Popen([sys.executable, "-m", module, "--queue", queue], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        children = []
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            child.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


def wait_for(what: Callable[[], T | None], timeout: float = PATIENCE_S) -> T:
    """The first true answer of `what`."""
    deadline = time.monotonic() + timeout
    while not (answer := what()):
        assert time.monotonic() < deadline, f"waited {timeout} s in vain"
        time.sleep(0.05)
    return answer


def row(db: Database, job_id: str) -> JobRow:
    with db.read() as session:
        return session.get_one(JobRow, job_id)


def wait_for_status(db: Database, job_id: str, *wanted: str, timeout: float = PATIENCE_S) -> JobRow:
    return wait_for(lambda: job if (job := row(db, job_id)).status in wanted else None, timeout)


def trainers(folder: Path) -> list[psutil.Process]:
    """Processes that train a run below `folder`, started for it or kept ready; zombies do not count."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words, place, status = (process.info[key] for key in ("cmdline", "cwd", "status"))
        if TRAINERS & set(words or []) and (place or "").startswith(str(folder)) and status != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def is_importing(db: Database, job_id: str) -> bool:
    """Whether the trainer has been started and has not begun to train."""
    job = row(db, job_id)
    return job.status == "RUNNING" and job.pid is not None
