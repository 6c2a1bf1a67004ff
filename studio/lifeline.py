"""A child ends with its parent, also when the parent is killed: the end of the pipe at its stdin says so.

Works wherever there are pipes. Linux says it sooner (`prctl`), which the parent asks for when it starts the child.
Through the same pipe the parent names a new log when the old one is full (`new_log`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

# sysexits' EX_CONFIG, to the parent: the last line of the log says what is wrong, another start would not help
EXIT_MUST_CHANGE = 78
PR_SET_PDEATHSIG = 1
NEW_LOG = b"log "


def end_with_parent(grace_s: float = 0.0) -> None:
    """When stdin is a pipe, end this process once the pipe closes: politely first, for certain after `grace_s`."""
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(0).st_mode)
    except OSError:
        return  # stdin is closed: nobody holds a lifeline
    if is_pipe:
        threading.Thread(target=_watch, args=(grace_s,), name="lifeline", daemon=True).start()


def _watch(grace_s: float) -> None:
    while message := os.read(0, 65536):
        _open_log(message.splitlines()[-1])
    if grace_s:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(grace_s)
    os._exit(1)


def new_log(path: Path) -> bytes:
    """What a parent writes to a child's stdin so that it goes on in the log `path`."""
    return NEW_LOG + os.fsencode(path) + b"\n"


def _open_log(message: bytes) -> None:
    """Go on in the log that the parent names. stdout and stderr change at once, so each write lands whole in one file."""
    if not message.startswith(NEW_LOG):
        return
    try:
        log = os.open(message.removeprefix(NEW_LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:
        return  # the old log goes on
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def ask_for_death_signal() -> None:
    """Between fork and exec of a child on Linux: have the kernel send it SIGTERM when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
