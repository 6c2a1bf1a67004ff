"""A stand-in for pynvml, put on the path of real processes by tests.gpus: a driver whose cards are in the variable TEST_NVML (JSON)."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NOT_FOUND = 3, 6


class NVMLError(Exception):
    """As pynvml's: the number of an error, with its words."""

    def __init__(self, value: int, said: str = "Not Supported") -> None:
        super().__init__(said)
        self.value = value
        self.said = said

    def __str__(self) -> str:
        return self.said


def _driver() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.environ["TEST_NVML"])
    return found


def nvmlInit() -> None:
    if error := _driver().get("error"):
        raise NVMLError(*error)


def nvmlSystemGetDriverVersion() -> str:
    return str(_driver()["version"])


def nvmlSystemGetCudaDriverVersion() -> int:
    return int(_driver()["cuda"])


def nvmlDeviceGetCount() -> int:
    return len(_driver()["cards"])


def nvmlDeviceGetHandleByIndex(index: int) -> dict[str, Any]:
    found: dict[str, Any] = _driver()["cards"][index]
    return found


def nvmlDeviceGetHandleByUUID(uuid: str) -> dict[str, Any]:
    for card in _driver()["cards"]:
        for part in (card, *card.get("slices", [])):
            if part["uuid"] == uuid:
                return dict(part)
    raise NVMLError(NVML_ERROR_NOT_FOUND, "Not Found")


def _figure(handle: dict[str, Any], name: str) -> Any:
    if handle.get(name) is None:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return handle[name]


def nvmlDeviceGetUUID(handle: dict[str, Any]) -> str:
    return str(handle["uuid"])


def nvmlDeviceGetName(handle: dict[str, Any]) -> str:
    return str(handle["name"])


def nvmlDeviceGetMemoryInfo(handle: dict[str, Any]) -> SimpleNamespace:
    total = _figure(handle, "total")
    return SimpleNamespace(total=total, used=handle["used"], free=total - handle["used"])


def nvmlDeviceGetUtilizationRates(handle: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(gpu=_figure(handle, "use"), memory=0)


def nvmlDeviceGetTemperature(handle: dict[str, Any], sensor: int) -> int:
    return int(_figure(handle, "temperature"))


def nvmlDeviceGetPowerUsage(handle: dict[str, Any]) -> int:
    return int(_figure(handle, "power"))


def nvmlDeviceGetCudaComputeCapability(handle: dict[str, Any]) -> tuple[int, int]:
    major, minor = _figure(handle, "capability")
    return major, minor


def nvmlDeviceGetMigMode(handle: dict[str, Any]) -> list[int]:
    return [int("slices" in handle)] * 2


def nvmlDeviceGetMaxMigDeviceCount(handle: dict[str, Any]) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: dict[str, Any], index: int) -> dict[str, Any]:
    slices = handle["slices"]
    if index >= len(slices):
        raise NVMLError(NVML_ERROR_NOT_FOUND, "Not Found")
    return dict(slices[index])


def nvmlDeviceGetComputeRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.get("processes", [])]


def nvmlDeviceGetGraphicsRunningProcesses(handle: dict[str, Any]) -> list[SimpleNamespace]:
    return []
