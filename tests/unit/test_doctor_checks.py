"""What the doctor says of the page, the hub, the platform and a GPU, in a table of what it may find."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from studio.catalogue import hardware
from studio.catalogue.cards import Device
from studio.records import PageHealth, PageState
from studio.services import Studio, system

READY, STARTING = PageHealth(state=PageState.READY), PageHealth(state=PageState.STARTING)
FAILED = PageHealth(state=PageState.FAILED, reason="ValueError: no")


@pytest.mark.parametrize(
    ("answer", "ok", "said"),
    [
        (None, False, "the studio at http://x does not answer"),
        (SimpleNamespace(page=PageState.READY, reason=None), True, "http://x is ready"),
        (SimpleNamespace(page=PageState.STARTING, reason=""), True, "http://x is being built"),
        (SimpleNamespace(page=PageState.FAILED, reason="ValueError: no"), False, "it can't be built: ValueError: no"),
    ],
)
def test_the_page_of_the_studio_that_runs_here(studio: Studio, monkeypatch: pytest.MonkeyPatch, answer: Any, ok: bool, said: str) -> None:
    assert studio.system._page() is None, "none runs"
    monkeypatch.setattr(system, "running", lambda settings: SimpleNamespace(url="http://x"))
    monkeypatch.setattr(system, "health", lambda url: answer)
    found = studio.system._page()
    assert found is not None and (found.ok, found.detail, bool(found.fix)) == (ok, said, not ok)


@pytest.mark.parametrize(
    ("page", "ok", "said"),
    [(READY, True, "this page is ready"), (STARTING, True, "this page is being built"), (FAILED, False, "ValueError")],
)
def test_the_page_of_this_process(studio: Studio, page: PageHealth, ok: bool, said: str) -> None:
    studio.system.watch_page(lambda: page)
    found = studio.system._page()
    assert found is not None and found.ok is ok and said in found.detail


@pytest.mark.parametrize(
    ("code", "complaint", "said"),
    [
        (0, "a\n", "it can be built; no studio runs here now"),
        (1, "a\nb\n\n", "it can't be built: b"),
        (1, " \n", "it can't be built: no message"),
    ],
)
def test_a_page_that_is_built_on_trial(monkeypatch: pytest.MonkeyPatch, code: int, complaint: str, said: str) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code, stderr=complaint))
    found = system._page_trial()
    assert (found.ok, found.detail) == (not code, said)


def test_a_page_that_takes_too_long_and_a_long_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("", timeout)

    monkeypatch.setattr(subprocess, "run", late)
    assert system._page_trial().detail == "it was not built within 120 s"
    assert system._last_line("a\n" + "b" * 300) == "b" * 200


@pytest.mark.parametrize(
    ("platform", "ok", "said"), [("linux", True, ""), ("darwin", False, "4-bit training"), ("win32", False, "stopping a training keeps no")]
)
def test_a_platform_that_nobody_tried(monkeypatch: pytest.MonkeyPatch, platform: str, ok: bool, said: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    found = system._platform()
    assert found.ok is ok and said in found.detail


def test_the_hub_is_asked_unless_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [None, httpx.ConnectError("")]

    def head(url: str, timeout: float) -> None:
        if found := answers.pop(0):
            raise found

    monkeypatch.setattr(httpx, "head", head)
    assert not system._hub(is_offline=True).ok and len(answers) == 2
    assert [system._hub(is_offline=False).ok for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("kind", "refusal", "ok", "said"),
    [
        ("cuda", None, True, "one, 24.0 GiB. it is warm"),
        ("cpu", None, True, "one, 24.0 GiB. it is warm. No GPU that torch can use"),
        ("cuda", SimpleNamespace(problem="Too old.", fix="Update."), False, "one, 24.0 GiB. Too old."),
    ],
)
def test_the_device_and_why_another_is_not_used(monkeypatch: pytest.MonkeyPatch, kind: Any, refusal: Any, ok: bool, said: str) -> None:
    monkeypatch.setattr(hardware, "devices", lambda: [Device(kind, "one", 24 * 1024**3, 0)])
    monkeypatch.setattr(hardware, "refusal", lambda: refusal)
    monkeypatch.setattr(hardware, "gpus", lambda: SimpleNamespace(notes=["it is warm"]))
    found = system._device()
    assert found.ok is ok and found.detail.startswith(said) and bool(found.fix) is not ok
    assert ("No GPU" in found.detail) is (kind == "cpu")


@pytest.mark.parametrize(("free", "ok"), [(4 * 1024**3, True), (4 * 1024**3 - 1, False)])
def test_memory_is_short_below_4_gib(monkeypatch: pytest.MonkeyPatch, free: int, ok: bool) -> None:
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(16 * 1024**3, 16 * 1024**3 - free))
    found = system._memory()
    assert found.ok is ok and found.detail == "4.0 GiB free of 16.0 GiB"


@pytest.mark.parametrize(("free", "ok"), [(5 * 1024**3, True), (5 * 1024**3 - 1, False)])
def test_the_disk_is_short_below_5_gib(studio: Studio, monkeypatch: pytest.MonkeyPatch, free: int, ok: bool) -> None:
    monkeypatch.setattr(system.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    found = studio.system._disk()
    assert found.ok is ok and found.detail.startswith("5.0 GiB free; datasets 0 B, runs 0 B")


def test_a_model_whose_steps_are_not_recorded_is_named(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded, count in ((None, 0), (SimpleNamespace(base="b", unrecorded=""), 0), (SimpleNamespace(base="b", unrecorded="why"), 1)):
        monkeypatch.setattr(studio.system, "engine", lambda loaded=loaded: SimpleNamespace(loaded=loaded))
        found = studio.system._decoding()
        assert len(found) == count and all(one.ok and "(why)" in one.detail for one in found)
