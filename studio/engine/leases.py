"""Memory that is promised to a training job, and load times: what engine, compressors and workers remember between requests.

A promise lies in a file of the studio, so that an engine that starts finds it; the worker renews it as long as the job runs. Knows no
torch; asks the system how much is free.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

from studio.catalogue import hardware
from studio.engine import holders
from studio.engine.protocol import ModelFolder
from studio.records import MemoryLease

LONGEST_S = 600.0  # without being renewed: a worker that died gives nothing back
RENEW_S = 60.0

log = logging.getLogger("studio.engine")


@dataclass(frozen=True)
class Lease:
    """`job` may take `keep_bytes`; of what was `free_bytes` then, models of the studio counted in, these may use the rest.

    `gave_way`: what the engine had loaded then was unloaded, since both did not fit.
    """

    job: str
    keep_bytes: int
    free_bytes: int
    expires: float
    gave_way: bool = False
    begun: float = 0.0
    device: str = ""  # as CUDA_VISIBLE_DEVICES calls it; "" for the only one

    @classmethod
    def begin(cls, job: str, keep_bytes: int, gave_way: bool = False, held_bytes: int = 0, device: str = "") -> Lease:
        """From what is free now. `held_bytes`: what models of the studio hold of the device."""
        now = time.time()
        return cls(job, keep_bytes, free_bytes(device) + held_bytes, now + LONGEST_S, gave_way, now, device)

    @property
    def room_bytes(self) -> int:
        return max(0, self.free_bytes - self.keep_bytes)

    @property
    def is_over(self) -> bool:
        return time.time() > self.expires

    def record(self) -> MemoryLease:
        return MemoryLease(job=self.job, room_bytes=self.room_bytes, keep_bytes=self.keep_bytes, gave_way=self.gave_way)


class LeaseBook:
    """The promises of one studio, a file each in `cache`/leases; without a folder they are this process's alone."""

    def __init__(self, cache: Path | None) -> None:
        self._folder = None if cache is None else cache / "leases"
        self._holders = None if cache is None else cache / "holders"
        self._own: dict[str, Lease] = {}  # also where the disk refuses

    def begin(self, job: str, keep_bytes: int, *, gave_way: bool = False, device: str = "") -> Lease:
        """`job` may take `keep_bytes` from now on, as long as that is renewed; of the device that it was promised before, or `device`."""
        held = sum(one.bytes for one in self.holders())
        known = self._known().get(job)
        if known is not None:
            device = device or known.device
        lease = Lease.begin(job, keep_bytes, gave_way, held, device)
        self._write(lease)
        return lease

    def renew(self, job: str, keep_bytes: int) -> None:
        """The job still runs. A promise that is not known (any more) begins."""
        known = self._known().get(job)
        if known is None:
            self.begin(job, keep_bytes)
        else:
            self._write(replace(known, expires=time.time() + LONGEST_S))

    def end(self, job: str) -> None:
        """`job` has ended; harmless for one that was promised nothing."""
        self._own.pop(job, None)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._file(job).unlink(missing_ok=True)

    def now(self) -> Lease | None:
        """The promise that leaves least of this process's device; None where none holds."""
        holding = [lease for lease in self._known().values() if not lease.is_over]
        if any(lease.device for lease in holding):
            own = hardware.usable()[0].selector
            holding = [lease for lease in holding if lease.device in ("", own)]
        return min(holding, key=lambda lease: lease.room_bytes, default=None)

    def room_bytes(self) -> int | None:
        """What this process's model may take beside the other models of the studio; None where nothing is promised."""
        lease = self.now()
        if lease is None:
            return None
        others = sum(one.bytes for one in self.holders() if one.pid != os.getpid())
        return max(0, lease.room_bytes - others)

    def holders(self) -> list[holders.ModelHolder]:
        """Models of the studio on the device where trainings run."""
        if self._holders is None:
            return []
        device = hardware.usable()[0].kind
        return [one for one in holders.alive(self._holders) if one.device == device]

    def _known(self) -> dict[str, Lease]:
        found = dict(self._own)
        if self._folder is None:
            return found
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):  # deleted meanwhile, or no file of ours
                lease = Lease(**json.loads(file.read_text(encoding="utf-8")))
                found[lease.job] = lease
        return found

    def _write(self, lease: Lease) -> None:
        if self._folder is None:
            self._own[lease.job] = lease
            return
        file = self._file(lease.job)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(asdict(lease)), encoding="utf-8")
            part.replace(file)
        except OSError as exc:
            log.warning("%s: %s", file, exc)
            self._own[lease.job] = lease

    def _file(self, job: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{quote(job, safe='')[:200]}.json"


def free_bytes(selector: str = "") -> int:
    """On the device of that name, else where models run."""
    devices = hardware.usable()
    device = next((one for one in devices if selector and one.selector == selector), devices[0])
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
