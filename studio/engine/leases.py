"""Memory that the engine has promised to a training job, and load times: what the scheduler remembers between requests.

Knows no torch; asks the system how much is free.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from studio.catalogue import hardware
from studio.engine.protocol import ModelFolder
from studio.records import MemoryLease

LONGEST_S = 24 * 3600.0  # a worker that died gives nothing back

log = logging.getLogger("studio.engine")


@dataclass(frozen=True)
class Lease:
    """`job` may take `keep_bytes`; of what was `free_bytes` then, the engine may use the rest.

    `gave_way`: what the engine had loaded then was unloaded, since both did not fit.
    """

    job: str
    keep_bytes: int
    free_bytes: int
    expires: float
    gave_way: bool = False

    @classmethod
    def begin(cls, job: str, keep_bytes: int, gave_way: bool = False) -> Lease:
        """From what is free now."""
        return cls(job, keep_bytes, free_bytes(), time.time() + LONGEST_S, gave_way)

    @property
    def room_bytes(self) -> int:
        return max(0, self.free_bytes - self.keep_bytes)

    @property
    def is_over(self) -> bool:
        return time.time() > self.expires

    def record(self) -> MemoryLease:
        return MemoryLease(job=self.job, room_bytes=self.room_bytes, keep_bytes=self.keep_bytes, gave_way=self.gave_way)


def free_bytes() -> int:
    """On the device where models run."""
    device = hardware.usable()[0]
    if device.kind == "cuda":
        return device.memory_bytes - device.used_bytes
    return hardware.memory().free_bytes


class LoadTimes:
    """How long each base took to load last time; kept in a file so that the first load after a start is predicted too."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, float] = known if isinstance(known, dict) else {}

    def expected(self, folder: ModelFolder) -> float | None:
        return self._known.get(str(folder.path))

    def record(self, folder: ModelFolder, seconds: float) -> None:
        self._known[str(folder.path)] = round(seconds, 1)
        if self._path is None:
            return
        try:
            self._path.write_text(json.dumps(self._known), encoding="utf-8")
        except OSError as exc:
            log.warning("%s: %s", self._path, exc)  # a full disk must not cost an answer
