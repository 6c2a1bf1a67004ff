"""A child ends with its parent, also when the parent is killed: its stdin is a pipe, and the pipe's end says that the parent is gone.

Works wherever there are pipes. Linux tells it sooner (`prctl`), which the parent asks for when it starts the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import threading
import time

EXIT_MUST_CHANGE = 78  # sysexits' EX_CONFIG, to the parent: my last line says what is wrong, starting me again would not help
PR_SET_PDEATHSIG = 1


def end_with_parent(grace_s: float = 0.0) -> None:
    """When stdin is a pipe, end this process once the pipe closes: politely first, for certain after `grace_s`."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        return  # stdin is closed: nobody holds a lifeline
    if is_pipe:
        threading.Thread(target=_watch, args=(grace_s,), name="lifeline", daemon=True).start()


def _watch(grace_s: float) -> None:
    while os.read(0, 1024):
        pass
    if grace_s:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(grace_s)
    os._exit(1)


def ask_for_death_signal() -> None:
    """Between fork and exec of a child on Linux: have the kernel send it SIGTERM when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
