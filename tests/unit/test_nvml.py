"""What the driver's library says of cards, slices and processes, where it says nothing, and in the words of older releases."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from studio.catalogue import nvml
from studio.catalogue.nvml import DriverState
from tests import gpus

PART = {"uuid": "MIG-1", "name": "A100 MIG 1g", "total": 5 * gpus.GIB, "used": 0, "capability": [8, 0]}


def test_a_card_says_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    full = gpus.card(use=87, temperature=64, power=280_500)
    split = gpus.card("A100", 1, capability=None, slices=[PART])
    gpus.pretend(monkeypatch, driver=gpus.driver(full, split, cuda=12040))
    found = nvml.read()
    assert (found.state, found.version, found.cuda) == (DriverState.OK, "580.95.05", (12, 4))
    one, two = found.cards
    assert (one.use, one.temperature_c, one.power_w, one.capability, one.slices) == (0.87, 64, 280.5, (8, 6), ())
    assert (one.total_bytes, one.used_bytes) == (24 * gpus.GIB, gpus.GIB)
    assert (two.use, two.temperature_c, two.power_w, two.capability) == (None, None, None, None)
    assert [(part.uuid, part.total_bytes, part.slices) for part in two.slices] == [("MIG-1", 5 * gpus.GIB, ())]
    assert nvml.reading(one.uuid) == one and nvml.reading("MIG-1") == two.slices[0] and nvml.reading("GPU-unknown") is None


@pytest.mark.parametrize(
    ("number", "state"), [(12, DriverState.ABSENT), (9, DriverState.NOT_LOADED), (18, DriverState.BROKEN), (999, DriverState.BROKEN)]
)
def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, number: int, state: DriverState) -> None:
    gpus.pretend(monkeypatch, driver={"error": [number, "words"]})
    found = nvml.read()
    assert (found.state, found.said, found.cards) == (state, "words", ()) and nvml.holders("GPU-0") == [] and nvml.reading("GPU-0") is None
    gpus.pretend(monkeypatch, driver=gpus.driver())
    assert nvml.read().state == DriverState.OK, "a driver that was loaded meanwhile"


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.read().state == DriverState.NO_PACKAGE and nvml.holders("GPU-0") == [] and nvml.reading("GPU-0") is None


def test_who_holds_memory_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    one = gpus.card(processes=[(2**22 + 1, 5), (own, 9), (1, None)])
    gpus.pretend(monkeypatch, driver=gpus.driver(one))
    found = nvml.holders(one["uuid"])
    assert [(each.pid, each.used_bytes) for each in found] == [(own, 9), (2**22 + 1, 5), (1, None)]
    assert found[0].name and not found[0].is_ours and found[1].words == "a program outside this container (PID 4194305, 0.0 GiB)"
    process = SimpleNamespace(name=lambda: "python", cmdline=lambda: ["python", "-m", "studio.engine.server"])
    monkeypatch.setattr(nvml.psutil, "Process", lambda pid: process)
    assert nvml.holders(one["uuid"])[0].is_ours


def test_older_releases_answer_bytes() -> None:
    assert (nvml._text(b"RTX \xff"), nvml._text("RTX")) == ("RTX \ufffd", "RTX")
