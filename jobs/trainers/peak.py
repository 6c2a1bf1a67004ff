"""The most memory that a training has taken beyond its imported libraries: what the prediction before the launch is held against.

On a processor it is the process's own high-water mark, where the system keeps one; on a GPU what torch had reserved. Knows no model.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

SELF = Path("/proc/self")


class Peak:
    """Make it when the libraries are imported and nothing is loaded yet. `device` is cuda or cpu."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):  # a system without it, or a container that forbids it: then there is no figure
            (SELF / "clear_refs").write_text("5", encoding="ascii")
        self._before = _status("VmRSS")

    def figures(self) -> dict[str, Any]:
        """{"device", "peak_memory_bytes"}; the bytes are left out where nothing can tell them."""
        found: dict[str, Any] = {"device": self._device}
        if (peak := self._peak()) is not None:
            found["peak_memory_bytes"] = peak
        return found

    def _peak(self) -> int | None:
        if self._device == "cuda":
            import torch

            return int(torch.cuda.max_memory_reserved())
        highest = _status("VmHWM")
        return highest - self._before if highest is not None and self._before is not None else None


def _status(key: str) -> int | None:
    """A line of /proc/self/status in bytes; None on systems without it."""
    try:
        lines = (SELF / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
