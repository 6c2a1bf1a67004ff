"""Part `machine`: what driver, torch and compiler say; NF4 computes; a trainer that stands by takes nothing of the card."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

from jobs import executor
from jobs import train as trainer
from jobs.trainers import compiling
from studio.catalogue import hardware, nvml, torch_view
from studio.services import system
from tests.gpu import child
from tests.gpu.child import Child
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

MIB = 1024**2
CALM_S, LOOKS = 0.5, 3  # a process that has used less than CALM of a core in so many looks has done its imports
CALM = 0.04
IMPORTED = "libtorch"  # in its maps, once it has begun to import


def describe() -> dict[str, Any]:
    """The machine in a line of JSON, without a process that has torch."""
    driver = nvml.read()
    return {
        "cards": [card.name for card in driver.cards],
        "card_bytes": [card.total_bytes for card in driver.cards],
        "driver": driver.version,
        "torch": hardware.torch_version(),
        "processor": _processor(),
        "cores": hardware.cores(),
        "memory_bytes": hardware.memory().total_bytes,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def used_bytes() -> int:
    """Of all cards, by their driver; 0 where there is none."""
    return sum(card.used_bytes or 0 for card in nvml.read().cards)


def measure(scale: Scale) -> Measured:
    view, driver = torch_view.look(), nvml.read()
    trial = str(child.call(scale.folder, "tests.gpu.machine:four_bits", scale.limit_s))
    standing = _stand_by(scale)
    found = hardware.look(view)
    figures = {
        "driver": driver.version,
        "driver_state": driver.state,
        "serves_cuda": driver.cuda,
        "torch": view.version,
        "torch_cuda": view.cuda,
        "architectures": view.architectures,
        "compiler": compiling.has_compiler(),
        "refusal": found.refusal and found.refusal.problem,
        "notes": list(found.notes),
        "four_bits": trial,
        **standing,
    }
    missed, left_out = [], []
    if not scale.is_reduced and not view.is_available:
        missed.append(f"torch can't use the card: {view.said}")
    if standing["ready_bytes"]:
        missed.append(f"the trainer that stands by takes {standing['ready_bytes'] / MIB:.0f} MiB of the card")
    if not driver.cards:
        left_out.append("what the trainer that stands by takes of a card: the driver shows none")
    compiler = "a C compiler" if figures["compiler"] else "no C compiler, so no Triton"
    cards = ", ".join(card.name for card in driver.cards) or "no card"
    said = (
        f"{cards}, driver {driver.version or 'none'}, torch {view.version} for {' '.join(view.architectures) or 'processors'}, {compiler}; "
        f"NF4 computes on {trial}; a trainer stands by with {standing['ready_rss_bytes'] / MIB:.0f} MiB of main memory"
    )
    return Measured(figures, said, missed, left_out)


def four_bits() -> str:
    """In a child: where the doctor's trial of bitsandbytes computes. Raises where it can't."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(system.BITSANDBYTES_TRIAL, {})
    return printed.getvalue().strip()


def _stand_by(scale: Scale) -> dict[str, Any]:
    """Start a trainer as a worker keeps one ready, and look at the card before and after its imports."""
    before = used_bytes()
    environment = executor.trainer_environment(1, os.environ.get("CUDA_VISIBLE_DEVICES"))
    ready = Child(scale.folder, "tests.gpu.machine:wait_ready", env=environment)
    try:
        process = psutil.Process(ready.pid)
        _wait_for_imports(process, scale.limit_s)
        return {"ready_bytes": max(0, used_bytes() - before), "ready_rss_bytes": process.memory_info().rss}
    finally:
        ready.kill()


def wait_ready() -> int:
    """In a child: what `python -m jobs.ready --stand-by` does, whose stdin never says what to train."""
    reading, _ = os.pipe()
    os.dup2(reading, 0)
    return trainer.main(["--stand-by"])


def _wait_for_imports(process: psutil.Process, limit_s: float) -> None:
    """Raises RuntimeError where it ends, or is not done in time."""
    deadline, calm, used = time.monotonic() + limit_s, 0, 0.0
    while calm < LOOKS:
        time.sleep(CALM_S)
        if time.monotonic() > deadline or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError("the trainer that should stand by has ended, or is not ready in time")
        now = sum(process.cpu_times()[:2])
        is_there = any(IMPORTED in mapped.path for mapped in process.memory_maps())
        calm = calm + 1 if is_there and now - used < CALM * CALM_S * 2 else 0
        used = now
