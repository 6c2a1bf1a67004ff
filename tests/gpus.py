"""Machines with GPUs for real processes: the driver and torch's view of it are stand-ins on their path, all else is real."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.catalogue import hardware, nvml, torch_view

if TYPE_CHECKING:
    import pytest  # which `make gpu` does without

STAND_INS = Path(__file__).parent / "stand_ins"
GIB = 1024**3
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # of torch 2.13 for CUDA 13.0


def card(name: str = "NVIDIA GeForce RTX 3090", number: int = 0, gib: float = 24, used: float = 1, **figures: Any) -> dict[str, Any]:
    """A card of the driver; figures that are not given are [N/A]."""
    uuid = f"GPU-{number:08x}-1111-2222-3333-444444444444"
    return {"uuid": uuid, "name": name, "total": int(gib * GIB), "used": int(used * GIB), "capability": [8, 6], **figures}


def driver(*cards: dict[str, Any], version: str = "580.95.05", cuda: int = 13000, **more: Any) -> dict[str, Any]:
    return {"version": version, "cuda": cuda, "cards": list(cards), **more}


def torch_of(cards: Sequence[dict[str, Any]], version: str = "2.13.0+cu130", cuda: str = "13.0", **more: Any) -> dict[str, Any]:
    """A torch with CUDA that sees these cards, in this order."""
    devices = [
        {
            "name": one["name"],
            "uuid": one["uuid"].removeprefix("GPU-"),
            "major": one["capability"][0],
            "minor": one["capability"][1],
            "total_memory": one["total"] or 16 * GIB,
            "free": 12 * GIB,
            "is_integrated": one["total"] is None,
        }
        for one in cards
    ]
    return {"version": version, "cuda": cuda, "architectures": ARCHITECTURES, "devices": devices, **more}


def pretend(monkeypatch: pytest.MonkeyPatch, **machine: Any) -> None:
    """Make this process, and those that it starts, run on such a machine (see `variables`)."""
    for name, value in variables(**machine).items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("pynvml", STAND_INS / "nvml" / "pynvml.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(nvml, "_library", [])
    monkeypatch.setattr(torch_view, "_views", {})
    monkeypatch.setattr(hardware, "_gpus", (float("-inf"), hardware.Gpus()))  # put back afterwards


def variables(driver: dict[str, Any] | None, torch: dict[str, Any] | None = None, visible: str | None = None) -> dict[str, str]:
    """Environment variables of a process on such a machine. `torch` None: the installed one, which knows no GPU."""
    places = [str(STAND_INS / "nvml"), str(STAND_INS / "cuda"), os.environ.get("PYTHONPATH", "")]
    found = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "TEST_NVML": json.dumps(driver), "TEST_TORCH": json.dumps(torch)}
    if visible is not None:
        found["CUDA_VISIBLE_DEVICES"] = visible
    return found
