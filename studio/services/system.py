"""What this machine and this studio are doing: the strip on every page, and the doctor. Changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import httpx

from studio import processes
from studio.catalogue import hardware, nvml
from studio.catalogue.cards import Device
from studio.db.session import Database
from studio.records import BugReport, DeviceReading, DoctorCheck, DoctorReport, EngineStatus, PageHealth, PageState, StatusStrip
from studio.running import health, running
from studio.services import bug_report
from studio.services.jobs import JobService
from studio.services.models import STARTER, ModelService
from studio.settings import COPIES, Settings

GIB = 1024**3
LOW_DISK_BYTES, LOW_MEMORY_BYTES, LOW_GPU_BYTES = 5 * GIB, 4 * GIB, 1 * GIB
HUB = "https://huggingface.co"
ENGINE_STALE_S = 1.0
TRIAL_S = 120
PAGE_FIX = "STUDIO_HOME/logs/web.log says where. Where files of the studio are missing or changed, install it again."
# what a look at the installed package can't tell: does it load, and does it compute here?
BITSANDBYTES_TRIAL = """
import torch, bitsandbytes.functional as F
device = "cuda" if torch.cuda.is_available() else "cpu"
weights = torch.linspace(-1, 1, 4096, device=device, dtype=torch.bfloat16).reshape(64, 64)
packed, state = F.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
error = (F.dequantize_4bit(packed, state) - weights).abs().mean().item()
assert error < 0.1, error
print(torch.cuda.get_device_name() if device == "cuda" else "CPU")
"""

NO_ENGINE = EngineStatus(ok=False)


class SystemService:
    """What a person can ask about the machine."""

    def __init__(self, settings: Settings, db: Database, models: ModelService, jobs: JobService) -> None:
        self.settings = settings
        self.db = db
        self.models = models
        self.jobs = jobs
        self._engine = (float("-inf"), NO_ENGINE)
        self._asking = threading.Lock()
        self._page_health: Callable[[], PageHealth] | None = None

    def strip(self) -> StatusStrip:
        devices = hardware.devices()
        device, refusal = devices[0], hardware.refusal()
        queue = self.jobs.overview()
        return StatusStrip(
            device=device.name,
            device_kind=device.kind,
            memory=f"{device.used_bytes / GIB:.1f} of {device.memory_bytes / GIB:.0f} GiB",
            memory_bytes=device.memory_bytes,
            used_bytes=device.used_bytes,
            devices=[_reading(one) for one in devices],
            problem=refusal.problem if refusal else "",
            fix=refusal.fix if refusal else "",
            running=queue.running,
            queued=queue.queued,
            paused=queue.paused,
            queue_eta_s=queue.queue_eta_s,
            engine=self.engine(),
        )

    def engine(self) -> EngineStatus:
        """The engine's own status. At most ENGINE_STALE_S old, and asked by one thread at a time."""
        with self._asking:
            asked, status = self._engine
            if time.monotonic() - asked > ENGINE_STALE_S:
                status = self._ask_engine()
                self._engine = (time.monotonic(), status)
        return status

    def _ask_engine(self) -> EngineStatus:
        if not self.settings.engine_url:
            return NO_ENGINE
        try:
            headers = {}
            if self.settings.engine_key:
                headers["Authorization"] = f"Bearer {self.settings.engine_key}"
            answer = httpx.get(f"{self.settings.engine_url}/engine/status", headers=headers, timeout=1.0)
            if answer.status_code == 404:  # another maker's server, which has no status to tell
                return EngineStatus(ok=True)
            return EngineStatus.model_validate(answer.raise_for_status().json())
        except (httpx.HTTPError, ValueError):
            return NO_ENGINE

    def doctor(self, *, thorough: bool = False) -> DoctorReport:
        """`thorough` tries bitsandbytes and, where no studio runs, the page (seconds), and the hub (leaves this machine)."""
        checks = [_python(), _torch(), _device(), _memory(), self._disk(), self._home(), self._starter(), *self._decoding()]
        if thorough:
            checks += [_bitsandbytes_trial(), self._page() or _page_trial(), _hub(self.settings.hub_offline)]
        else:
            checks += [_bitsandbytes(), self._page() or _check("page", True, "no studio runs here now")]
        return DoctorReport(checks=[*checks, _platform()])

    def write_report(self, to: Path) -> BugReport:
        """Versions, checks, settings without secrets and the last errors, for a bug report. Raises StudioError."""
        return bug_report.write(self.settings, self.db, self.doctor(thorough=True).checks, to)

    def watch_page(self, health: Callable[[], PageHealth]) -> None:
        """`health` is the page of this process. Without one, the page of the studio that runs in this STUDIO_HOME is asked."""
        self._page_health = health

    def _page(self) -> DoctorCheck | None:
        """The page of this process, or of the studio that runs here; None where none runs."""
        if self._page_health is not None:
            return _page_check(self._page_health(), "this page")
        found = running(self.settings)
        if found is None:
            return None
        answer = health(found.url)
        if answer is None:
            fix = "Wait a minute; if it stays so, stop it and start it again with `studio up`."
            return _check("page", False, f"the studio at {found.url} does not answer", fix)
        return _page_check(PageHealth(state=answer.page, reason=answer.reason or ""), found.url)

    def _decoding(self) -> list[DoctorCheck]:
        """Answers that a GPU makes more slowly than it could; they are right all the same."""
        loaded = self.engine().loaded
        if loaded is None or not loaded.unrecorded:
            return []
        said = f"{loaded.base} answers more slowly than it could: its steps are launched one operation at a time ({loaded.unrecorded})"
        return [_check("decoding", True, said)]

    def _disk(self) -> DoctorCheck:
        free = shutil.disk_usage(self.settings.home).free
        nouns = ("datasets", "runs", "adapters", "exports", "models", COPIES, "cache")
        used = ", ".join(f"{noun} {_size(self.settings.home / noun)}" for noun in nouns)
        return _check(
            "disk",
            free >= LOW_DISK_BYTES,
            f"{_text(free)} free; {used}",
            "Free some space: a run keeps two checkpoints beside its adapter.",
        )

    def _home(self) -> DoctorCheck:
        is_writable = os.access(self.settings.home, os.W_OK | os.X_OK)
        return _check(
            "home",
            is_writable,
            str(self.settings.home),
            "Make this folder writable, or set STUDIO_HOME to another one.",
        )

    def _starter(self) -> DoctorCheck:
        starter = self.models.show(STARTER)
        size = f"{starter.parameters / 1e6:.2f} million parameters"
        return _check("starter model", starter.loadable, starter.reason or size, "Install the studio again.")


def _reading(device: Device) -> DeviceReading:
    return DeviceReading(
        name=device.name,
        kind=device.kind,
        memory_bytes=device.memory_bytes,
        used_bytes=device.used_bytes,
        use=device.use,
        temperature_c=device.temperature_c,
        power_w=device.power_w,
        problem=device.problem,
    )


def _check(name: str, ok: bool, detail: str, fix: str = "") -> DoctorCheck:
    return DoctorCheck(name=name, ok=ok, detail=detail, fix="" if ok else fix)


def _page_check(page: PageHealth, where: str) -> DoctorCheck:
    if page.state == PageState.FAILED:
        return _check("page", False, f"it can't be built: {page.reason}", PAGE_FIX)
    if page.state == PageState.STARTING:
        return _check("page", True, f"{where} is being built")
    return _check("page", True, f"{where} is ready")


def _page_trial() -> DoctorCheck:
    """Build the page in a process of its own: gradio takes seconds to import, and this process needs none of it."""
    try:
        command = processes.module_command("studio.web", "--try-page")
        environment = processes.environment_with(("STUDIO_DB_URL",))
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, stdin=subprocess.DEVNULL, env=environment)
    except subprocess.TimeoutExpired:
        return _check(
            "page",
            False,
            f"it was not built within {TRIAL_S} s",
            "Run the doctor again when the machine is less busy.",
        )
    if done.returncode == 0:
        return _check("page", True, "it can be built; no studio runs here now")
    return _page_check(PageHealth(state=PageState.FAILED, reason=_last_line(done.stderr)), "")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]


def _python() -> DoctorCheck:
    return _check(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} at {sys.executable}",
        "Install Python 3.11 or later.",
    )


def _torch() -> DoctorCheck:
    version = hardware.torch_version()
    return _check("torch", bool(version), version or "not installed", "Run `make install`.")


def _device() -> DoctorCheck:
    """The GPUs, what is to be said of them, and why one that is here is not used."""
    found, refusal = hardware.devices(), hardware.refusal()
    detail = "; ".join(f"{device.name}, {_text(device.memory_bytes)}" for device in found)
    if refusal is not None:
        return _check("device", False, f"{detail}. {refusal.problem}", refusal.fix)
    detail = ". ".join([detail, *hardware.gpus().notes])
    full = [sentence for device in found if (sentence := _taken(device))]
    if full:
        return _check("device", False, ". ".join([detail, *full]), "End that program, or name another card in CUDA_VISIBLE_DEVICES.")
    if found[0].kind == "cpu":
        detail += (
            ". No GPU that torch can use: the starter and models of some hundred million parameters train here, larger ones take very long"
        )
    return _check("device", True, detail)


def _taken(device: Device) -> str:
    """Who holds the memory of a GPU that is nearly full, where that is none of the studio's own processes; else ""."""
    if device.kind != "cuda" or device.is_shared or device.free_bytes >= LOW_GPU_BYTES:
        return ""
    holders = nvml.holders(device.selector)
    if any(holder.is_ours for holder in holders):
        return ""
    who = "another program"
    if holders:
        who = ", ".join(holder.words for holder in holders[:3])
    return f"Only {_text(device.free_bytes)} of {device.name} are free: {who} holds the rest"


def _memory() -> DoctorCheck:
    memory = hardware.memory()
    detail = f"{_text(memory.free_bytes)} free of {_text(memory.total_bytes)}"
    return _check(
        "memory",
        memory.free_bytes >= LOW_MEMORY_BYTES,
        detail,
        "Close other programs: training the starter takes about 1.5 GiB.",
    )


def _bitsandbytes() -> DoctorCheck:
    try:
        return _check("bitsandbytes", True, metadata.version("bitsandbytes"))
    except metadata.PackageNotFoundError:
        return _check(
            "bitsandbytes",
            False,
            "not installed",
            "Run `make install`; without it only the recipe lora-sft works.",
        )


def _bitsandbytes_trial() -> DoctorCheck:
    """Quantise and restore a small matrix in a process of its own: this one stays free of torch."""
    try:
        command, environment = [sys.executable, "-P", "-c", BITSANDBYTES_TRIAL], processes.child_environment()
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, stdin=subprocess.DEVNULL, env=environment)
    except subprocess.TimeoutExpired:
        return _check(
            "bitsandbytes",
            False,
            f"4-bit trial did not end within {TRIAL_S} s",
            "Run the doctor again when the machine is less busy.",
        )
    version = _bitsandbytes().detail
    if done.returncode == 0:
        where, device = done.stdout.strip(), hardware.usable()[0]
        is_there = where != "CPU" or device.kind == "cpu"
        fix = f"Look at the check of the device: {device.name} is here and is not used."
        return _check("bitsandbytes", is_there, f"{version}, 4-bit NF4 computes on {where}", fix)
    why = _last_line(done.stderr)
    return _check(
        "bitsandbytes",
        False,
        f"{version}, 4-bit trial failed: {why}",
        "Use the recipe lora-sft, or install a bitsandbytes for this device.",
    )


def _hub(is_offline: bool) -> DoctorCheck:
    if is_offline:
        return _check(
            "hub",
            False,
            "HF_HUB_OFFLINE=1 is set, so nothing is fetched",
            "Only hub: names need it; unset HF_HUB_OFFLINE to use them.",
        )
    try:
        httpx.head(HUB, timeout=3.0)
    except httpx.HTTPError as exc:
        return _check(
            "hub",
            False,
            f"{HUB} can't be reached ({type(exc).__name__})",
            "Only hub: names need it; everything else works offline.",
        )
    return _check("hub", True, f"{HUB} answers; asked only for hub: names")


def _platform() -> DoctorCheck:
    name = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "linux":
        return _check("platform", True, name)
    lacks = "stopping a training keeps no checkpoint"
    if sys.platform == "darwin":
        lacks = "4-bit training may lack a bitsandbytes build"
    return _check(
        "platform",
        False,
        f"{name}: proven on Linux only; {lacks}",
        "Use Linux, WSL 2 or the Dockerfile where something fails.",
    )


def _size(folder: Path) -> str:
    try:
        return _text(sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()))
    except OSError:  # a run that ends while we look
        return "changing"


def _text(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
