"""What machine this is: devices, memory, cores, and how its threads are shared. Asks the system, never torch."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

CGROUP = Path("/sys/fs/cgroup")
STALE_S = 5.0  # nvidia-smi takes a tenth of a second: the status strip may ask every second

Role = Literal["trainer", "engine"]


@dataclass(frozen=True)
class Device:
    """Where models run: a GPU, or the processor when there is none. Memory in bytes, as the whole machine sees it now."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    used_bytes: int


@dataclass(frozen=True)
class Memory:
    """Main memory of the machine, or of the container where that is less. Bytes."""

    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.used_bytes)


_devices: tuple[float, list[Device]] = (float("-inf"), [])


def devices() -> list[Device]:
    """The GPUs that torch could use here; else the processor alone. Never empty; at most STALE_S old."""
    global _devices
    asked, found = _devices
    if time.monotonic() - asked > STALE_S:
        found = (_nvidia_gpus() if torch_supports_cuda() else []) or [_processor()]
        _devices = (time.monotonic(), found)
    return found


def memory() -> Memory:
    machine = psutil.virtual_memory()
    limit = _cgroup_number("memory.max")
    if limit is None or limit >= machine.total:
        return Memory(machine.total, machine.total - machine.available)
    used = (_cgroup_number("memory.current") or 0) - _cgroup_reclaimable()
    return Memory(limit, min(limit, max(0, used)))


def cores() -> int:
    """Processor cores this process may use: affinity and the container's quota counted."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no cgroup v2 here, so no quota to respect
    return count


def thread_budget(role: Role) -> int:
    """Threads of one process. Two torch processes with all threads each slow each other down tenfold, and the page with them.

    A trainer leaves a core for the page and the engine; the engine takes at most half, since it answers beside a training.
    """
    available = cores()
    return max(1, available - 1) if role == "trainer" else max(1, available // 2)


@functools.lru_cache(maxsize=1)
def cpu_number_bytes() -> int:
    """Bytes of a number in a training on this processor: 2 where it has instructions for bfloat16, else 4 (as jobs.trainers.base)."""
    if platform.machine() in ("arm64", "aarch64"):
        return 2
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 4
    return 2 if "avx512_bf16" in text or "amx_tile" in text else 4


def torch_version() -> str:
    """As installed, "" when absent; read from the package's metadata."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def torch_supports_cuda() -> bool:
    version = torch_version()
    return bool(version) and not version.endswith("+cpu")


def _processor() -> Device:
    here = memory()
    return Device("cpu", f"CPU, {cores()} core{'s' if cores() > 1 else ''}", here.total_bytes, here.used_bytes)


def _nvidia_gpus() -> list[Device]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that doesn't answer can't train either
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> list[Device]:
    """Lines `name, total MiB, used MiB`; a line without numbers (a GPU split by MIG says [N/A]) is left out."""
    found = []
    for line in text.splitlines():
        name, *numbers = (part.strip() for part in line.rsplit(",", 2))
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            total, used = (int(number) * 1024**2 for number in numbers)
            found.append(Device("cuda", name, total, used))
    return found


def _cgroup_number(name: str) -> int | None:
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cgroup_reclaimable() -> int:
    """File cache that the kernel gives back when asked: it is no use of memory in a person's sense."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
