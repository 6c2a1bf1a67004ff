"""Parts of the runner that need no trainer: making room on the device, and what a beat survives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import select, text

from jobs import conclusion, sharing
from jobs.attempts import LightAttempt, Pulse, grace_s
from jobs.config import JobConfig
from jobs.outcome import Outcome
from jobs.reconcile import Reconciler
from jobs.rundir import RunDir
from jobs.runner import Runner
from studio.db import lifecycle
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobEventRow, JobRow
from studio.db.session import Database
from studio.records import CancelRequest, JobKind
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


def test_who_wants_to_keep_a_checkpoint_gives_time_for_a_whole_step() -> None:
    asked = [grace_s(request, is_stopping=False) for request in (CancelRequest.CANCEL, CancelRequest.KEEP, CancelRequest.PAUSE, None)]
    assert asked == [8.0, 30.0, 30.0, 30.0]  # None: it was resumed on its way to a pause
    assert {grace_s(request, is_stopping=True) for request in (*CancelRequest, None)} == {5.0}


class Watched(set[Claim]):
    """The claims of a worker, whose reconciler looks in the moment in which one is added."""

    def look_before_adding(self, look: Callable[[], None]) -> None:
        self.looking = threading.Thread(target=look)

    def add(self, claim: Claim) -> None:
        self.looking.start()
        self.looking.join(0.5)  # without the lock it has looked by now; with it, it waits
        super().add(claim)


def test_a_reconciler_does_not_take_a_claim_from_the_worker_that_is_making_it(settings: Settings) -> None:
    db = open_store(settings)
    job_id = submit(db, make_run(settings.runs / "run"))
    worker = Runner(settings, db, "gpu")
    worker.active = claims = Watched()
    claims.look_before_adding(Reconciler(worker, notify=lambda: None, free_threads=lambda: 0).look)
    held = worker._claim_next()
    claims.looking.join()
    job = row(db, job_id)
    assert held == Claim(job_id, worker.owner, 1) and (job.status, job.lost) == ("RUNNING", 0)
    db.dispose()


def test_a_worker_takes_the_first_that_may_start_and_leaves_reports_without_an_engine(settings: Settings) -> None:
    db = open_store(settings)
    with db.write() as session:
        report, other = (
            lifecycle.submit(session, JobRow(kind=kind, queue="light", name=kind)).id for kind in (JobKind.REPORT, JobKind.JUDGE)
        )
    alone, served = Runner(settings, db, "light"), Runner(replace(settings, engine_url="http://127.0.0.1:9"), db, "light")
    assert [claim and claim.job_id for claim in (alone._claim_next(), alone._claim_next())] == [other, None]
    assert (claim := served._claim_next()) and claim.job_id == report
    db.dispose()


def test_a_light_job_tells_its_time_left_from_its_own_steps(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    db = open_store(settings)
    with db.write() as session:
        job_id = lifecycle.submit(session, JobRow(kind=JobKind.COMPARE, queue="light", name="job")).id
        held = lifecycle.claim(session, job_id, "us", None)
    assert held
    attempt = LightAttempt(Runner(settings, db, "light"), held, row(db, job_id))
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = []
    for step, seconds in ((6, 0.0), (7, 4.0), (8, 4.0)):  # 5 were there from an earlier attempt; then 4 s a step
        now += seconds
        attempt._progress(step, 10)
        job = row(db, job_id)
        told.append((job.step, job.max_steps, job.eta_s))
    assert told == [(6, 10, None), (7, 10, 12.0), (8, 10, 8.0)]
    db.dispose()
