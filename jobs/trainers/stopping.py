"""When to stop: SIGTERM, Ctrl-C, or the end of stdin when a worker holds the other end.

A stop is a wish: training leaves at the end of the batch that is computed, with a checkpoint of its last whole step. Before training
there is nothing to keep, so the process leaves at once; and one that does not get around to leaving is ended after a grace period.

One death may come as several signals (Linux sends one for every thread that the child is handed on to), and a handler
interrupts another. So what runs in it takes no lock: `threading.Event` would wait for itself, for ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from types import FrameType

from jobs.rundir import STOPPED

GRACE_S = 35.0  # longer than any worker waits: this end is for the day when nobody is left to wait
PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """The wish has been met; what there was to keep is kept."""


class StopWish:
    """One per process. `is_set` is what training asks at each step."""

    def __init__(self) -> None:
        self.is_set = False
        self._keeps = False

    def begin_keeping(self) -> None:
        """From here on a stop waits for a checkpoint."""
        self._keeps = True
        if self.is_set:
            raise Stopped

    def set(self) -> None:
        self.is_set = True

    def listen(self, watch_stdin: bool) -> None:
        """Install the handler; with `watch_stdin` the process also ends with whoever started it, however that one ends."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._leave()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        if watch_stdin:
            ask_for_signal_at_death_of_parent()
            threading.Thread(target=self._watch, name="parent", daemon=True).start()

    def _watch(self) -> None:
        while os.read(0, 1024):  # sys.stdin's lock, held by a daemon thread, would abort the interpreter's end
            pass
        self._leave()
        time.sleep(GRACE_S)
        os._exit(STOPPED)

    def _leave(self) -> None:
        if not self._keeps:
            os._exit(STOPPED)
        self.set()
        if hasattr(signal, "alarm"):
            signal.alarm(int(GRACE_S))  # nobody handles it, so the kernel ends the process, whatever its threads wait for


def ask_for_signal_at_death_of_parent() -> None:
    """On Linux; the parent here is the very thread that started this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
