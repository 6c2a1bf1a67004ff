"""What machine this is: devices, memory, cores, and how its threads are shared. Asks the system, never torch."""

from __future__ import annotations

import functools
import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from studio.catalogue import cards, nvml, torch_view
from studio.catalogue.cards import Device, GpuProblem, Gpus
from studio.catalogue.nvml import Driver, DriverState
from studio.catalogue.torch_view import TorchView

CGROUP = Path("/sys/fs/cgroup")
PCI = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"  # as a vendor on the PCI bus
NVIDIA_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/nvgpu", "/dev/nvhost-ctrl")  # of its driver, the last two on Jetson
OTHER_FILES = ("/dev/kfd", "/dev/dxg")  # AMD's driver; Windows, whose cards WSL shows
STALE_S = 5.0  # the status strip may ask every second

Role = Literal["trainer", "engine"]


@dataclass(frozen=True)
class Memory:
    """Main memory of the machine, or of the container where that is less. Bytes."""

    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.used_bytes)


_gpus: tuple[float, Gpus] = (float("-inf"), Gpus())


def devices() -> list[Device]:
    """The GPUs that this studio may take, those that torch can use first and the largest of them first; else the processor alone.

    Never empty; at most STALE_S old. One that torch can't use says so in its `problem`.
    """
    return list(gpus().devices) or [processor()]


def usable() -> list[Device]:
    """As `devices`, and only those that models can run on."""
    return [one for one in devices() if one.is_usable] or [processor()]


def refusal() -> GpuProblem | None:
    """Why no GPU is used although one is here: device=auto is refused then. None where one is used, and where there is none."""
    return gpus().refusal


def gpus() -> Gpus:
    """The GPUs and what is to be said of them, at most STALE_S old."""
    global _gpus
    asked, found = _gpus
    if time.monotonic() - asked > STALE_S:
        found = look()
        _gpus = (time.monotonic(), found)
    return found


def forget() -> None:
    """Look anew at the next question: CUDA_VISIBLE_DEVICES of this process has changed."""
    global _gpus
    _gpus = (float("-inf"), Gpus())


def look(view: TorchView | None = None) -> Gpus:
    """The GPUs now. `view`: torch's, from a process that has torch; else a child is asked, where there is a sign of a GPU."""
    driver = nvml.read()
    here = memory()
    has_card = _has_nvidia_card()
    has_sign = driver.cards or driver.state is DriverState.BROKEN or has_card or any(Path(file).exists() for file in OTHER_FILES)
    if view is None and has_sign:
        lacks_memory = not driver.cards or any(card.total_bytes is None for card in driver.cards)
        view = torch_view.ask(_signature(driver), torch_version(), with_memory=lacks_memory)
    return cards.join(
        driver,
        view,
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        main_memory=(here.total_bytes, here.used_bytes),
        has_card=has_card,
    )


def _signature(driver: Driver) -> str:
    """All of a driver's view that decides what torch sees."""
    uuids = [part.uuid for card in driver.cards for part in (card, *card.slices)]
    return " ".join([driver.state, driver.version, *uuids])


def _has_nvidia_card() -> bool:
    """Whether a driver has left its files, or the PCI bus shows a display or compute controller of NVIDIA."""
    if any(Path(file).exists() for file in NVIDIA_FILES):
        return True
    for place in PCI.glob("*"):
        try:
            if (place / "vendor").read_text().strip() == NVIDIA and (place / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def memory() -> Memory:
    whole = psutil.virtual_memory()
    limit = _cgroup_number("memory.max")
    if limit is None or limit >= whole.total:
        return Memory(whole.total, whole.total - whole.available)
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


def has_expandable_segments() -> bool:
    """Whether torch's allocator on CUDA can let its segments grow here: it needs Linux, and WSL maps no memory that way."""
    return platform.system() == "Linux" and "microsoft" not in platform.release().lower()


def torch_version() -> str:
    """As installed, "" when absent; read from the package's metadata."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def processor() -> Device:
    here = memory()
    return Device("cpu", f"CPU, {cores()} core{'s' if cores() > 1 else ''}", here.total_bytes, here.used_bytes)


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
