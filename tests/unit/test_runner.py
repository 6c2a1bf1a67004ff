"""Parts of the runner that need no trainer: making room on the device, and what a beat survives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sqlalchemy import text

from jobs import runner
from jobs.runner import Pulse, Runner
from studio.db import lifecycle
from studio.db.lifecycle import LostClaimError
from studio.db.models import Job
from studio.settings import Settings
from tests.runs import open_store


class Engine(BaseHTTPRequestHandler):
    """An engine that holds three gigabytes and notes what it is asked."""

    asked: list[str] = []

    def answer(self, value: dict[str, object]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        self.answer({"loaded": {"base": "starter", "adapters": [], "bytes": 3_000}, "loading": None, "active": 0})

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        self.answer({"unloaded_bytes": 3_000})

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[str]:
    Engine.asked.clear()
    server = HTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("needed", "is_asked"), [(3_999, False), (4_001, True)])
def test_the_engine_gives_way_above_seventy_percent_of_the_device(settings: Settings, engine: str, needed: int, is_asked: bool) -> None:
    runner._unload_engine(replace(settings, engine_url=engine), needed, total=10_000)
    assert ("POST /engine/unload" in Engine.asked) == is_asked


def test_without_an_engine_there_is_nobody_to_ask(settings: Settings) -> None:
    runner._unload_engine(replace(settings, engine_url="http://127.0.0.1:9"), 1, total=1)


def test_a_database_that_fails_for_a_moment_costs_a_beat_and_not_the_job(settings: Settings) -> None:
    db = open_store(settings)
    with db.write() as session:
        job_id = lifecycle.submit(session, Job(kind="train", name="job")).id
        held = lifecycle.claim(session, job_id, "us", None)
    assert held
    pulse = Pulse(Runner(settings, db, "gpu"), held)
    with db.write() as session:
        session.execute(text("ALTER TABLE jobs RENAME TO moved"))
    assert pulse.beat(lambda _: None) is None
    with db.write() as session:
        session.execute(text("ALTER TABLE moved RENAME TO jobs"))
        lifecycle.cancel(session, job_id)
    assert pulse.beat(lambda _: None) is None  # not yet time for the next one
    pulse._next = 0.0
    assert pulse.beat(lambda _: None) == "cancel"
    with db.write() as session:
        lifecycle.requeue(session, held, "taken over")
    pulse._next = 0.0
    with pytest.raises(LostClaimError):
        pulse.beat(lambda _: None)
    db.dispose()
