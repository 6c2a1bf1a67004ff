"""Parts of the runner that need no trainer: making room on the device, and what a beat survives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import select, text

from jobs import conclusion, sharing
from jobs.attempts import Pulse
from jobs.config import JobConfig
from jobs.outcome import Outcome
from jobs.rundir import RunDir
from jobs.runner import Runner
from studio.db import lifecycle
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobEventRow, JobRow
from studio.db.session import Database
from studio.settings import Settings
from tests.runs import make_run, open_store, submit
from tests.workers import row, wait_for, wait_for_status


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
        room = {"adapter_bytes": 0, "adapter_budget_bytes": 0}
        loaded = {"base": "starter", "quantization": "", "device": "cpu", "adapters": [], "bytes": 3_000, **room}
        self.answer({"loaded": loaded, "loading": None, "active": 0})

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
    sharing.begin(replace(settings, engine_url=engine), "job", needed, total=10_000)
    sharing.end(replace(settings, engine_url=engine), "job")
    assert Engine.asked[1:] == ["POST /engine/unload" if is_asked else "POST /engine/share", "POST /engine/resume"]


def test_without_an_engine_there_is_nobody_to_ask(settings: Settings) -> None:
    sharing.begin(replace(settings, engine_url="http://127.0.0.1:9"), "job", 1, total=1)
    sharing.end(replace(settings, engine_url="http://127.0.0.1:9"), "job")


class SilentEngine(BaseHTTPRequestHandler):
    """An engine that hangs until somebody lets it go."""

    let_go = threading.Event()

    def do_GET(self) -> None:
        self.let_go.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_wish_to_cancel_does_not_wait_for_an_engine_that_hangs(settings: Settings) -> None:
    SilentEngine.let_go.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), SilentEngine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    db = open_store(settings)
    run = make_run(settings.runs / "run")
    job_id = submit(db, run)
    working = threading.Thread(target=Runner(replace(settings, engine_url=f"http://127.0.0.1:{server.server_port}"), db, "gpu").run)
    working.start()
    try:
        wait_for(lambda: row(db, job_id).status == "RUNNING")
        with db.write() as session:
            lifecycle.cancel(session, job_id)
        wait_for_status(db, job_id, "CANCELLED")
        assert not run.attempts.exists()  # no trainer was started only to be ended
    finally:
        SilentEngine.let_go.set()
        working.join()
        server.shutdown()
        server.server_close()
        db.dispose()


def test_a_database_that_fails_for_a_moment_costs_a_beat_and_not_the_job(settings: Settings) -> None:
    db = open_store(settings)
    with db.write() as session:
        job_id = lifecycle.submit(session, JobRow(kind="train", name="job")).id
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


NO_MEMORY = Outcome("failed", "There is no memory.", "Take less.", "out_of_memory", {"per_device_train_batch_size": 1})


def ended(db: Database, job_id: str, outcome: Outcome, wish: str = "") -> JobRow:
    """The job after one more attempt that came to this."""
    with db.write() as session:
        held = lifecycle.claim(session, job_id, "us", None)
        assert held
        job = session.get_one(JobRow, job_id)
        RunDir(Path(job.run_dir)).attempt(held.attempt).path.mkdir(parents=True)
    if wish:
        with db.write() as session:
            lifecycle.pause(session, job_id) if wish == "pause" else lifecycle.cancel(session, job_id)
    with db.write() as session:
        conclusion.conclude(session, held, job, outcome)
    with db.read() as session:
        return session.get_one(JobRow, job_id)


def test_memory_that_runs_out_halves_the_batch_once_and_never_twice(settings: Settings) -> None:
    db = open_store(settings)
    run = make_run(settings.runs / "run", per_device_train_batch_size=6, gradient_accumulation_steps=2)
    job_id = submit(db, run)
    job = ended(db, job_id, NO_MEMORY)
    assert (job.status, job.lost, job.is_halved) == ("QUEUED", 0, True)
    on_disk = JobConfig.model_validate(run.read_config())
    assert on_disk == JobConfig.model_validate(job.config)  # the trainer reads the file, people the row
    assert (on_disk.per_device_train_batch_size, on_disk.gradient_accumulation_steps) == (3, 4)
    assert "once more with per_device_train_batch_size 3" in run.attempt(1).log.read_text(encoding="utf-8")
    with db.read() as session:
        (notice,) = session.scalars(select(JobEventRow).where(JobEventRow.kind == "notice"))
    assert "Memory ran out" in notice.data["text"]
    job = ended(db, job_id, NO_MEMORY)
    assert (job.status, job.cause, job.remedy) == ("FAILED", NO_MEMORY.cause, NO_MEMORY.remedy)
    with db.write() as session:  # a person who retries by hand asks for the same batch: it fails again, and is not halved again
        lifecycle.retry(session, job_id)
    assert ended(db, job_id, NO_MEMORY).status == "FAILED"
    db.dispose()


@pytest.mark.parametrize(("wish", "status"), [("pause", "PAUSED"), ("cancel", "CANCELLED")])
def test_a_wish_goes_before_the_second_try(settings: Settings, wish: str, status: str) -> None:
    db = open_store(settings)
    job_id = submit(db, make_run(settings.runs / "run"))
    assert ended(db, job_id, NO_MEMORY, wish).status == status
    db.dispose()


def test_a_batch_of_one_row_is_not_tried_again(settings: Settings) -> None:
    db = open_store(settings)
    job_id = submit(db, make_run(settings.runs / "run", per_device_train_batch_size=1))
    job = ended(db, job_id, NO_MEMORY)
    assert (job.status, job.reason, job.cause) == ("FAILED", NO_MEMORY.reason, "out_of_memory")
    db.dispose()


def test_a_stale_worker_does_not_change_the_options_of_a_run(settings: Settings) -> None:
    db = open_store(settings)
    run = make_run(settings.runs / "run")
    job_id, before = submit(db, run), run.config.read_bytes()
    with db.read() as session:
        job = session.get_one(JobRow, job_id)
    with pytest.raises(LostClaimError), db.write() as session:
        conclusion.conclude(session, Claim(job_id, "somebody", 1), job, NO_MEMORY)
    assert run.config.read_bytes() == before
    db.dispose()
