"""What a training may take of a device: what is free now and what the studio gives back for it, less a reserve; and who holds the rest.

Reads the notes of who holds models, the promises to jobs and the rows of those that run. Knows no torch.
"""

from __future__ import annotations

import contextlib

import psutil
from sqlalchemy import select

from studio.catalogue import hardware, memory, nvml
from studio.db.models import JobRow
from studio.db.session import Database
from studio.engine import holders
from studio.engine.leases import LeaseBook
from studio.records import AvailableMemory, JobKind, JobStatus, MemoryHolder
from studio.settings import Settings

RESERVE_BYTES = 224 * 1024**2  # what other programs may take meanwhile, and what a prediction forgets
OTHERS = {"cuda": "other programs and the driver", "cpu": "other programs and the system"}


class Room:
    """Reads the device; safe to share between threads."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings = settings
        self._db = db
        self._leases = LeaseBook(settings.cache)

    def available(self, device: str) -> AvailableMemory | None:
        """For a training that begins when nothing else of the studio runs there; None for a GPU that is not here."""
        if device == "cpu":
            total, used = hardware.memory().total_bytes, hardware.memory().used_bytes
        else:
            here = hardware.devices()[0]
            if here.kind != device:
                return None
            total, used = here.memory_bytes, here.used_bytes
        free = max(0, total - used)
        held = [*self._models(device), *self._jobs(device), *_strangers(device)]
        rest = MemoryHolder(name=OTHERS[device], bytes=max(0, used - sum(one.bytes for one in held)), is_given_back=False)
        return counted(free, [*held, rest])

    def _models(self, device: str) -> list[MemoryHolder]:
        """The engine's and the compressors'. Their processes end where they give way, and what CUDA keeps for these with them."""
        beside = {"cuda": memory.CUDA_CONTEXT}.get(device, 0)
        found = holders.alive(self._settings.cache / "holders")
        here = sorted((one for one in found if one.device == device), key=lambda one: -one.bytes)
        return [MemoryHolder(name=one.name, bytes=one.bytes + beside, is_given_back=True) for one in here]

    def _jobs(self, device: str) -> list[MemoryHolder]:
        """The trainings that run: the one that is planned now begins after them."""
        with self._db.read() as session:
            query = select(JobRow).where(JobRow.status == JobStatus.RUNNING, JobRow.kind == JobKind.TRAIN)
            running = [(job.name, job.pid, str(job.config.get("device") or "auto")) for job in session.scalars(query)]
        found = []
        for name, pid, wanted in running:
            where = wanted
            if wanted == "auto":
                where = hardware.usable()[0].kind
            if where == device and pid is not None and (size := self._bytes_of_job(name, pid, device)):
                found.append(MemoryHolder(name=f"the job {name}", bytes=size, is_given_back=True))
        return found

    def _bytes_of_job(self, name: str, pid: int, device: str) -> int:
        if device == "cpu":
            with contextlib.suppress(psutil.Error):
                return int(psutil.Process(pid).memory_info().rss)
            return 0
        seen = [one.used_bytes for one in nvml.holders(hardware.devices()[0].selector) if one.pid == pid]
        if seen and seen[0]:
            return seen[0]
        lease = self._leases.now()
        return lease.keep_bytes if lease is not None and lease.job == name else 0


def _strangers(device: str) -> list[MemoryHolder]:
    """Programs that are none of a studio's and hold memory of the GPU, as far as its driver names them."""
    if device != "cuda":
        return []
    found = nvml.holders(hardware.devices()[0].selector)
    return [
        MemoryHolder(name=f"{one.name or 'a program outside this container'} (PID {one.pid})", bytes=one.used_bytes, is_given_back=False)
        for one in found
        if one.used_bytes and not one.is_ours
    ]


def counted(free: int, held: list[MemoryHolder] | None = None) -> AvailableMemory:
    """`free` bytes and what of `held` is given back, less the reserve."""
    held = held or []
    returned = sum(one.bytes for one in held if one.is_given_back)
    available = max(0, free + returned - RESERVE_BYTES)
    return AvailableMemory(
        free_bytes=free, returned_bytes=returned, reserve_bytes=RESERVE_BYTES, available_bytes=available, holders=held
    )  # fmt: skip
