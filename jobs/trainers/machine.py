"""What a training takes of its machine, read now and then: memory and use of the device and of the host. Reads, never waits.

Knows no model. Bytes are of this moment; use is the share of the time since the reading before. Use, temperature and power of a
GPU come from its driver.
"""

from __future__ import annotations

import os
import time
from typing import Any

import psutil

from studio.catalogue import nvml
from studio.catalogue.torch_view import plain_uuid

EVERY_S = 0.5  # readings closer together would say the same


class Machine:
    """Readings for the events of a run. `device` is cuda or cpu."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._process = psutil.Process()
        self._uuid = _uuid() if device == "cuda" else ""
        self._next = 0.0
        self._process.cpu_percent()  # the first answer of each means nothing
        psutil.cpu_percent()

    def read(self) -> dict[str, Any] | None:
        """None when the last reading has just been."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + EVERY_S
        memory = psutil.virtual_memory()
        return {
            "process_bytes": self._process.memory_info().rss,
            "host_bytes": memory.total - memory.available,
            "host_total_bytes": memory.total,
            "cores": round(self._process.cpu_percent() / 100, 2),
            "host_use": round(psutil.cpu_percent() / 100, 3),
            **(self._read_gpu() if self._device == "cuda" else {}),
        }

    def _read_gpu(self) -> dict[str, Any]:
        import torch

        free, total = torch.cuda.mem_get_info()
        found = {"device_bytes": total - free, "device_total_bytes": total, "torch_bytes": torch.cuda.memory_allocated()}
        found["torch_peak_bytes"] = torch.cuda.max_memory_allocated()
        card = nvml.reading(self._uuid)
        if card is None:
            return found
        figures = {"device_use": card.use, "device_temperature_c": card.temperature_c, "device_power_w": card.power_w}
        return found | {name: value for name, value in figures.items() if value is not None}


def _uuid() -> str:
    """Of the GPU of this process, as its driver calls it; empty where only torch knows it."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if named.startswith(("GPU-", "MIG-")):
        return named
    own = plain_uuid(str(getattr(torch.cuda.get_device_properties(0), "uuid", "")))
    return f"GPU-{own}"
