"""What the process list says of this process: a trainer that has waited for its run gets the command line of one started for it.

Linux only: elsewhere the list goes on saying how the process was started. Knows nothing of runs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

ROOM = "-" * 400  # an argument that says nothing: the new command line has to fit into the old one's memory
ARG_START, ARG_END = 45, 46  # of /proc/PID/stat behind the name, whose fields are 48 and 49 (man 5 proc)


def take(words: Sequence[str]) -> None:
    """Show `words` as the command line, cut where there is no room for all."""
    if sys.platform != "linux":
        return
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start, end = int(fields[ARG_START]), int(fields[ARG_END])
    shown = "\0".join(words).encode(errors="surrogateescape")[: max(end - start - 1, 0)]
    if 0 < start < end:  # a kernel that hides them says 0
        ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)
