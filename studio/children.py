"""Child processes that should always run: started, logged, restarted when they end, and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from studio import lifeline, processes

GRACE_S, KILLED_WITHIN_S = 8.0, 1.5  # from TERM to KILL, and from there to the end of waiting
QUICK_DEATH_S, MAX_QUICK_DEATHS, DEATHS_WINDOW_S = 10.0, 3, 600.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 5.0
MAX_LOG_BYTES = 5_000_000  # a log and the one before it: twice as much per process at most
LAST_BYTES = 65536

Say = Callable[[str], None]


class ChildProcess:
    """One process that should always run: `python -m MODULE …`, its log, and how often it died young."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        logs: Path,
        fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.is_given_up = False
        self._command = processes.module_command(*command)
        self._environment = dict(environment)
        self._fds = tuple(fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._quick_deaths: deque[float] = deque()

    def start(self) -> None:
        if self._is_log_full():
            self._set_log_aside()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # its end tells the child that we are gone; see studio.lifeline
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=self._fds,
                start_new_session=True,  # Ctrl-C reaches us alone
                preexec_fn=lifeline.ask_for_death_signal if sys.platform == "linux" else None,
            )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._started = time.monotonic()

    def rotate_log(self) -> None:
        """Give a process whose log is full a new one. No line is lost: it writes to the old file until then."""
        if self.pid is None or not self._is_log_full():
            return
        self._set_log_aside()
        self.log.touch()
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # it ends just now, and its next start opens the new log
            os.write(self._process.stdin.fileno(), lifeline.new_log(self.log))

    def _is_log_full(self) -> bool:
        try:
            return self.log.stat().st_size > MAX_LOG_BYTES
        except OSError:
            return False

    @property
    def _old_log(self) -> Path:
        return self.log.with_suffix(".old.log")

    def _set_log_aside(self) -> None:
        with contextlib.suppress(OSError):  # where an open file can't be renamed it grows until the next start
            self.log.replace(self._old_log)

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before it has ever run."""
        if self._process is None:
            return None
        return self._process.poll()

    @property
    def pid(self) -> int | None:
        if self._process is None or self.exit_code is not None:
            return None
        return self._process.pid

    def tend(self, say: Say) -> None:
        """Restart the process when it has ended, and rotate its log when it is full.

        The first restart comes at once, later ones after a pause when it dies young, and none when that goes on.
        """
        self.rotate_log()
        now = time.monotonic()
        code = self.exit_code
        if self._process is None or code is None or self.is_given_up:
            return
        if self._due == 0.0:
            self._judge(now, code, say)
        elif now >= self._due:
            self._due = 0.0
            self.start()

    def _judge(self, now: float, code: int, say: Say) -> None:
        self.close()
        if code == lifeline.EXIT_MUST_CHANGE:
            self.is_given_up = True
            say(self.last_words())
            return
        if now - self._started < QUICK_DEATH_S:
            self._quick_deaths.append(now)
        while self._quick_deaths and now - self._quick_deaths[0] > DEATHS_WINDOW_S:
            self._quick_deaths.popleft()
        is_own_fault = code > 0  # a signal came from outside (out of memory, a person): that may always come back
        if is_own_fault and len(self._quick_deaths) > MAX_QUICK_DEATHS:
            self.is_given_up = True
            problem = f"The {self.name} process ends right after each start (exit {code}) and is left out."
            say(f"{problem} {self.log} says why.")
            return
        self._due = now + min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 4 ** len(self._quick_deaths))

    def last_words(self) -> str:
        lines = [*_last_lines(self._old_log), *_last_lines(self.log)]
        return (lines or [f"The {self.name} process ended without a message."])[-1]

    def send(self, number: int) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)

    def close(self) -> None:
        """Let go of a process that has ended or is ending: its first thread may be gone before the others."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILLED_WITHIN_S)
        if self._process.returncode is not None and self._process.stdin is not None:
            self._process.stdin.close()


class Children:
    """All child processes of one studio, or of one command."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._children: list[ChildProcess] = []

    def start(self, child: ChildProcess) -> ChildProcess:
        child.start()
        self._children.append(child)
        return child

    def tend(self) -> None:
        for child in self._children:
            child.tend(self._say)

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """TERM to all; what still runs of them, or of what they started, is killed after GRACE_S or on `hurry`."""
        deadline = time.monotonic() + GRACE_S
        family = self._family()
        for child in self._children:
            child.send(signal.SIGTERM)
        while time.monotonic() < deadline and not hurry() and any(_runs(process) for process in family):
            time.sleep(0.05)
        left = [process for process in {*family, *self._family()} if _runs(process)]
        for process in left:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                process.kill()
        while time.monotonic() < deadline + KILLED_WITHIN_S and any(_runs(process) for process in left):
            time.sleep(0.05)
        for child in self._children:
            child.close()

    def kill(self, child: ChildProcess) -> None:
        """End one at once, with all that it started: what is stopped or hung hears no polite word."""
        for process in self._family([child]):
            with contextlib.suppress(psutil.Error):
                process.kill()
        child.close()

    def _family(self, children: Sequence[ChildProcess] = ()) -> set[psutil.Process]:
        """The children that run (of `children` where they are named), and all that they started: a trainer leads a group of its own."""
        found: set[psutil.Process] = set()
        for pid in [child.pid for child in children or self._children]:
            with contextlib.suppress(psutil.Error):
                if pid is not None:
                    process = psutil.Process(pid)
                    found |= {process, *process.children(recursive=True)}
        return found


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
            return file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
