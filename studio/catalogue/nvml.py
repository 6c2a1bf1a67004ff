"""NVIDIA cards as their driver describes them (NVML): names, memory, use, temperature, power, and who holds their memory.

Knows no torch. A driver that does not answer is a state, not an error: studio.catalogue.cards says what it means.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psutil


class DriverState(StrEnum):
    """How the driver answers."""

    OK = "ok"
    ABSENT = "absent"  # there is no NVIDIA driver
    NO_PACKAGE = "no_package"  # nvidia-ml-py is not installed, so nobody can ask it
    NOT_LOADED = "not_loaded"  # its library is here and its kernel module is not loaded
    BROKEN = "broken"  # it answers with an error, for instance after an update and before the restart that it needs


# nvml.h: what its enumerations call these
TEMPERATURE_OF_CHIP, MIG_IS_ON = 0, 1
STATES = {12: DriverState.ABSENT, 9: DriverState.NOT_LOADED}  # NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED


@dataclass(frozen=True)
class Card:
    """A card, or a slice of one (MIG). None where the driver has no figure: nvidia-smi shows [N/A] there."""

    uuid: str  # GPU-… or MIG-…; what CUDA_VISIBLE_DEVICES takes
    name: str
    total_bytes: int | None = None
    used_bytes: int | None = None
    capability: tuple[int, int] | None = None
    use: float | None = None  # share of the time in which it computed, 0-1
    temperature_c: int | None = None
    power_w: float | None = None
    slices: tuple[Card, ...] = ()  # of a card that is split by MIG: they compute, the whole does not


@dataclass(frozen=True)
class Driver:
    """What NVML says. `cuda`: the newest CUDA that it serves; cards in order of their PCI bus."""

    state: DriverState
    version: str = ""
    cuda: tuple[int, int] | None = None
    cards: tuple[Card, ...] = ()
    said: str = ""  # what it says instead of answering


@dataclass(frozen=True)
class CardProcess:
    """A process that holds memory of a card. `used_bytes` None where the driver does not say; `name` empty for one of another container."""

    pid: int
    name: str
    used_bytes: int | None
    is_ours: bool = False  # a trainer or engine of a studio

    @property
    def words(self) -> str:
        size = ""
        if self.used_bytes:
            size = f", {self.used_bytes / 1024**3:.1f} GiB"
        return f"{self.name or 'a program outside this container'} (PID {self.pid}{size})"


_lock = threading.Lock()
_library: list[Any] = []  # pynvml, once it is initialised: some drivers take a second for that


def read() -> Driver:
    """Ask the driver. Takes some milliseconds, the first time up to a second; never raises."""
    try:
        import pynvml
    except ImportError:
        return Driver(DriverState.NO_PACKAGE)
    with _lock:
        try:
            _initialise(pynvml)
            count = pynvml.nvmlDeviceGetCount()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            cards = tuple(_card(pynvml, handle) for handle in handles)
            version = _text(pynvml.nvmlSystemGetDriverVersion())
            serves = _figure(pynvml, "nvmlSystemGetCudaDriverVersion")
        except pynvml.NVMLError as exc:
            _library.clear()  # a driver that was loaded meanwhile is found by the next call
            return Driver(_state(exc), said=str(exc))
    cuda = None
    if serves:
        cuda = (serves // 1000, serves % 1000 // 10)
    return Driver(DriverState.OK, version, cuda, cards)


def holders(uuid: str) -> list[CardProcess]:
    """Processes that hold memory of this card, the largest first; none where the driver does not say."""
    with _handle(uuid) as (pynvml, handle):
        if pynvml is None:
            return []
        found: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics"):
            for process in _figure(pynvml, f"nvmlDeviceGet{kind}RunningProcesses", handle) or []:
                found[process.pid] = process.usedGpuMemory
    return [CardProcess(pid, *_who(pid, used)) for pid, used in sorted(found.items(), key=lambda one: -(one[1] or 0))]


def reading(uuid: str) -> Card | None:
    """One card now; None where the driver does not know it."""
    with _handle(uuid) as (pynvml, handle):
        if pynvml is None:
            return None
        return _card(pynvml, handle)


@contextlib.contextmanager
def _handle(uuid: str) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of a card; (None, None) where there is none."""
    try:
        import pynvml
    except ImportError:
        yield None, None
        return
    with _lock:
        try:
            _initialise(pynvml)
            found = (pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except pynvml.NVMLError:
            found = (None, None)
        yield found


def _initialise(pynvml: Any) -> None:
    if not _library:
        pynvml.nvmlInit()
        _library.append(pynvml)


def _state(exc: Any) -> DriverState:
    return STATES.get(getattr(exc, "value", 0), DriverState.BROKEN)


def _card(pynvml: Any, handle: Any, is_slice: bool = False) -> Card:
    memory = _figure(pynvml, "nvmlDeviceGetMemoryInfo", handle)
    use = _figure(pynvml, "nvmlDeviceGetUtilizationRates", handle)
    power = _figure(pynvml, "nvmlDeviceGetPowerUsage", handle)
    capability = _figure(pynvml, "nvmlDeviceGetCudaComputeCapability", handle)
    return Card(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=memory and int(memory.total),
        used_bytes=memory and int(memory.used),
        capability=capability and (int(capability[0]), int(capability[1])),
        use=use and use.gpu / 100,
        temperature_c=_figure(pynvml, "nvmlDeviceGetTemperature", handle, TEMPERATURE_OF_CHIP),
        power_w=power and power / 1000,
        slices=() if is_slice else tuple(_slices(pynvml, handle)),
    )


def _slices(pynvml: Any, handle: Any) -> Iterator[Card]:
    """The parts of a card in MIG mode."""
    mode = _figure(pynvml, "nvmlDeviceGetMigMode", handle)
    if not mode or mode[0] != MIG_IS_ON:
        return
    for index in range(_figure(pynvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = _figure(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        if part is not None:
            yield _card(pynvml, part, is_slice=True)


def _figure(pynvml: Any, ask: str, *arguments: Any) -> Any:
    """None where this card, driver or release of pynvml does not tell, or this process may not know."""
    try:
        return getattr(pynvml, ask)(*arguments)
    except (pynvml.NVMLError, AttributeError):
        return None


def _text(value: str | bytes) -> str:
    """Older releases of pynvml answer bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value


def _who(pid: int, used: int | None) -> tuple[str, int | None, bool]:
    try:
        process = psutil.Process(pid)
        return process.name(), used, any(word.startswith(("jobs.", "studio.")) for word in process.cmdline())
    except psutil.Error:
        return "", used, False
