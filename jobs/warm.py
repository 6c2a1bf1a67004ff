"""A trainer kept ready: a process that has done its imports (a dozen CPU-seconds) and waits for the one run it will train.

It is made in the background, at low priority, once a training has begun or the queue has been quiet for a while, and only
where SPARE_BYTES of memory are free; it ends when they shrink to TIGHT_BYTES or nobody has needed it for IDLE_S. Then there
is none until the next training begins. It never has to be there: without it a trainer starts cold. Knows processes and run
directories; no database and no queue.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable

from jobs import executor
from jobs.rundir import Attempt, RunDir
from jobs.trainers import title
from studio import processes
from studio.catalogue import hardware

QUIET_S = 8.0  # so long after the last job, or after its own start, a worker counts as quiet
IDLE_S = 15 * 60.0
SPARE_BYTES = 3 * 1024**3  # it takes half a gigabyte; the rest stays for the engine and for people
TIGHT_BYTES = 1 * 1024**3
OOM_SCORE = 1000  # while it waits it is the first that the kernel shall take

logger = logging.getLogger(__name__)


class ReadyTrainer:
    """At most one waiting process. `begin` is for the threads that run jobs, the rest for the thread that made this.

    That thread has to live as long as the worker: Linux ends a child with the very thread that started it.
    """

    def __init__(self, threads: int, visible: Callable[[], str | None] = lambda: None) -> None:
        """`visible`: CUDA_VISIBLE_DEVICES for the next one; a library that it imports may fix the device at once."""
        self.threads = threads
        self._next_visible = visible
        self._visible: str | None = None  # of the waiting process
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._since = 0.0
        self._quiet_since = time.monotonic()
        self._begun: Attempt | None = None  # the training whose first step is awaited
        self._is_resting = False

    def begin(self, run: RunDir, number: int, threads: int, visible: str | None = None) -> subprocess.Popen[bytes] | None:
        """Have the waiting process train this attempt; None when there is none with these threads and this GPU, or it has ended."""
        with self._lock:
            self._begun, self._is_resting = run.attempt(number), False
            process = self._process
            fits = (threads, visible) == (self.threads, self._visible)
            if process is None or not fits or process.poll() is not None or processes.is_stopped(process.pid):
                return None  # one that does not fit is looked after by `tend`
            self._process = None
        executor.set_oom_score(process.pid, executor.OOM_SCORE)
        try:
            assert process.stdin
            process.stdin.write(json.dumps({"run_dir": str(run.path), "attempt": number}).encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it has ended in this moment
            _end(process)
            return None
        return process

    def tend(self, is_quiet: bool) -> None:
        """Look after it, each second or so; `is_quiet`: no job runs now."""
        now = time.monotonic()
        if not is_quiet:
            self._quiet_since = now
        with self._lock:
            if self._process is not None:
                self._look_at(self._process, now)
            elif not self._is_resting and self._is_time(now) and hardware.memory().free_bytes >= SPARE_BYTES:
                self._visible = self._next_visible()
                self._process, self._since = _start(self.threads, self._visible), now

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                _end(self._process)
            self._process, self._is_resting = None, True

    def _look_at(self, process: subprocess.Popen[bytes], now: float) -> None:
        if process.poll() is not None:
            logger.info("The trainer that was kept ready has ended (%s).", process.returncode)
        elif processes.is_stopped(process.pid):
            logger.info("The trainer that was kept ready was stopped by somebody: it is ended.")
        elif now - self._since < IDLE_S and hardware.memory().free_bytes > TIGHT_BYTES:
            return
        _end(process)
        self._process, self._is_resting = None, True

    def _is_time(self, now: float) -> bool:
        if now - self._quiet_since > QUIET_S:
            return True
        # two processes that import at once make both late: not before the training has begun
        if self._begun is not None and any(event.get("type") == "start" for event in self._begun.read_events(0)[0]):
            self._begun = None
            return True
        return False


def _start(threads: int, visible: str | None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        executor.command("--stand-by", f"--room={title.ROOM}", module="jobs.ready"),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=executor.trainer_environment(threads, visible),
        start_new_session=True,
    )
    executor.set_oom_score(process.pid, OOM_SCORE)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
