"""A trainer that was stopped (SIGSTOP) holds the device and does nothing: it is continued, and ended where it is stopped again.

It gets as long as a silent worker gets: a lease. Knows processes and no database.
"""

from __future__ import annotations

import logging
import signal
import time

from jobs import executor
from studio import processes
from studio.db import lifecycle

LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class StoppedTrainer:
    """Call `look` often while the child runs."""

    def __init__(self, child: executor.Child) -> None:
        self._child = child
        self._next = 0.0
        self._since: float | None = None
        self._was_woken = False

    def look(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_EVERY_S
        if not processes.is_stopped(self._child.pid):
            self._since = None
            return
        if self._since is None:
            self._since = now
        if now - self._since < lifecycle.LEASE_S:
            return
        if self._was_woken:
            logger.warning("Trainer %s is stopped again: it is ended, and its job goes on from the last checkpoint.", self._child.pid)
            executor.kill(self._child)
        else:
            logger.warning("Trainer %s has been stopped for %.0f s: it is woken.", self._child.pid, lifecycle.LEASE_S)
            processes.signal_group(self._child.pid, signal.SIGCONT)
        self._since, self._was_woken = None, True
