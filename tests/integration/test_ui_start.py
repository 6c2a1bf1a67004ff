"""The five steps of the Start tab on real services: what is done, what is next, and what has no button yet."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from studio.db.models import AdapterRow, JobRow
from studio.errors import StudioError
from studio.records import DeviceReading, EngineStatus, LoadedModel, MemoryLease
from studio.services import Studio
from studio.settings import Settings
from studio.ui.demo import NAME, DemoSteps
from studio.ui.start import steps
from studio.ui.strip import chips, is_busy


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings)
    yield opened
    opened.db.dispose()


def shown(demo: DemoSteps) -> list[tuple[str, str]]:
    return [(step.state, step.button) for step in steps(demo.state())]


def test_each_step_is_offered_once_the_one_before_is_done(studio: Studio) -> None:
    demo = DemoSteps(studio)
    later = [("later", "")] * 3
    assert shown(demo) == [("now", "Add the demo rows"), ("later", ""), *later]
    for too_early in (demo.train, demo.job, demo.contestant, demo.compare):
        with pytest.raises(StudioError, match="comes later"):
            too_early()
    assert demo.add().name == NAME
    assert shown(demo) == [("done", ""), ("now", "Train the adapter"), *later]
    job = demo.train()
    assert job.name == NAME and demo.job().id == job.id
    assert shown(demo) == [("done", ""), ("done", ""), ("now", "Watch it"), ("later", ""), ("later", "")]
    with pytest.raises(StudioError, match="comes later"):
        demo.contestant()
    assert demo.question()


@pytest.mark.parametrize("reason", ["", "CUDA out of memory."])
def test_a_training_that_has_failed_is_offered_again(studio: Studio, reason: str) -> None:
    # red when the text says "Train it again" and no button does so
    demo = DemoSteps(studio)
    demo.add()
    first = demo.train()
    studio.jobs.cancel(first.id)
    if reason:
        with studio.db.write() as session:
            row = session.get_one(JobRow, first.id)
            row.status, row.reason = "FAILED", reason
    found = steps(demo.state())
    assert [(step.state, step.button) for step in found[1:3]] == [("now", "Train it again"), ("later", "Watch it")]
    assert "Train it again." in found[2].text and (reason or "stopped by you") in found[2].text
    second = demo.train()
    assert second.id != first.id and second.name != first.name and demo.job().id == second.id
    assert shown(demo)[1:3] == [("done", ""), ("now", "Watch it")]


def test_a_training_that_was_stopped_and_kept_is_done(studio: Studio) -> None:
    # red when a step that has made an adapter is offered again
    demo = DemoSteps(studio)
    demo.add()
    job = demo.train()
    studio.jobs.cancel(job.id)
    with studio.db.write() as session:
        session.add(AdapterRow(name=NAME, base_model="starter", method="lora", path="runs/x/adapter", job_id=job.id, bytes=1, sha256=""))
    found = steps(demo.state())
    assert [step.state for step in found[:4]] == ["done", "done", "done", "now"]
    assert "again" not in found[2].text


def test_a_server_that_wants_no_key_is_asked_without_one(settings: Settings) -> None:
    # red when an empty key makes a header that no client may send, and the server looks dead
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(400 if "Authorization" in self.headers else 404)  # another maker's: it has no status

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        opened = Studio.open(dataclasses.replace(settings, engine_url=address, engine_key=""))
        assert opened.system.strip().engine.ok
        opened.db.dispose()
        server.shutdown()


def test_the_strip_says_what_waits_and_what_the_engine_holds(studio: Studio) -> None:
    strip = studio.system.strip()
    assert not is_busy(strip) and [chip.text for chip in chips(strip)][1:] == ["nothing runs", "engine: not answering"]
    demo = DemoSteps(studio)
    demo.add()
    demo.train()
    strip = studio.system.strip()
    assert is_busy(strip) and [chip.text for chip in chips(strip)][1:] == ["1 queued", "engine: not answering"]
    loaded = LoadedModel(
        base="starter", quantization="", device="cpu", adapters=["a", "b"], bytes=1, adapter_bytes=0, adapter_budget_bytes=0
    )
    lease = MemoryLease(job="night", room_bytes=1, keep_bytes=1, gave_way=False)
    for engine, text in (
        (EngineStatus(), "engine: idle"),
        (EngineStatus(yielded=lease), "engine: leaves room for night"),
        (EngineStatus(loaded=loaded, yielded=lease), "engine: starter + 2 adapters, beside night"),
    ):
        assert chips(strip.model_copy(update={"engine": engine}))[-1].text == text


def test_the_strip_shows_every_gpu_and_why_one_is_not_used(studio: Studio) -> None:
    # red when a card that torch rejects looks like one that is used
    gib = 1024**3
    large = DeviceReading(
        name="RTX 3090", kind="cuda", memory_bytes=24 * gib, used_bytes=int(7.9 * gib), use=0.87, temperature_c=64, power_w=279.6
    )
    small = DeviceReading(name="RTX 4060", kind="cuda", memory_bytes=8 * gib, used_bytes=gib)
    strip = studio.system.strip().model_copy(update={"devices": [large, small]})
    assert [chip.text for chip in chips(strip)][:2] == ["RTX 3090 · 7.9 of 24 GiB · 87% · 64 °C · 280 W", "RTX 4060 · 1.0 of 8 GiB"]
    first = chips(strip.model_copy(update={"problem": "Driver 550 is too old."}))[0]
    assert (first.text, first.tone, first.tab) == ("GPU not used: Driver 550 is too old.", "failed", "start")
