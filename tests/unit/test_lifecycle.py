"""The life of a job on real SQLite: who may claim, what a lost attempt costs, and that nobody writes without a claim."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from studio.db import lifecycle, queue_order
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobEventRow, JobRow, MetricRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.settings import Settings
from tests.runs import open_store


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def submit(db: Database, name: str = "job", **values: Any) -> str:
    with db.write() as session:
        return lifecycle.submit(session, JobRow(kind="train", name=name, **values)).id


def claim(db: Database, job_id: str, owner: str = "us", slot: str | None = "device:0") -> Claim:
    with db.write() as session:
        held = lifecycle.claim(session, job_id, owner, slot)
    assert held is not None
    return held


def row(db: Database, job_id: str) -> JobRow:
    with db.read() as session:
        return session.get_one(JobRow, job_id)


def make_due(db: Database, job_id: str) -> None:
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(not_before=0.0))


RACER = """
import sys, time
from pathlib import Path
from studio.db import lifecycle, queue_order
from studio.db.session import Database
url, job_id, start, me = sys.argv[1:]
db = Database(url)
with db.read() as session:
    queue_order.claimable(session, "gpu")
print("ready", flush=True)
while not Path(start).exists():
    time.sleep(0.001)
with db.write() as session:
    print("won" if lifecycle.claim(session, job_id, me, "device:0") else "lost", flush=True)
"""


def test_of_five_processes_one_wins_the_claim(db: Database, tmp_path: Path) -> None:
    job_id, start = submit(db), tmp_path / "start"
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, db.url, job_id, str(start), f"racer-{n}"], stdout=subprocess.PIPE, text=True)
        for n in range(5)
    ]
    for racer in racers:
        assert racer.stdout and racer.stdout.readline() == "ready\n"
    start.touch()
    answers = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(answers) == ["lost"] * 4 + ["won"]
    assert row(db, job_id).attempt == 1


def test_the_index_lets_one_job_run_on_a_slot_and_others_beside_it(db: Database) -> None:
    first, second, light = submit(db, "a"), submit(db, "b"), submit(db, "c", queue="light")
    held = claim(db, first)
    with db.write() as session:
        assert lifecycle.claim(session, second, "us", "device:0") is None
        assert lifecycle.claim(session, light, "us", None) is not None
        lifecycle.finish(session, held, "SUCCEEDED")
        assert lifecycle.claim(session, second, "us", "device:0") is not None


def test_waiting_jobs_start_by_priority_then_age(db: Database) -> None:
    old, new, urgent = submit(db, "old"), submit(db, "new"), submit(db, "urgent", priority=1)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [urgent, old, new]
        assert queue_order.claimable(session, "light") == []


def test_a_job_after_another_waits_for_its_success(db: Database) -> None:
    first = submit(db, "first")
    second = submit(db, "second", after_id=first)
    with db.write() as session:
        assert lifecycle.claim(session, second, "us", None) is None
    held = claim(db, first)
    with db.write() as session:
        lifecycle.finish(session, held, "SUCCEEDED")
        assert queue_order.claimable(session, "gpu") == [second]


def test_a_job_after_one_that_failed_is_cancelled_with_the_reason(db: Database) -> None:
    first = submit(db, "first")
    second = submit(db, "second", after_id=first)
    held = claim(db, first)
    with db.write() as session:
        lifecycle.finish(session, held, "FAILED", "broken")
        assert queue_order.unreachable(session)
        lifecycle.cancel_unreachable(session)
    job = row(db, second)
    assert (job.status, job.reason) == ("CANCELLED", "It was to run after first, which ended failed.")


@pytest.mark.parametrize(
    "write",
    [
        lambda session, held: lifecycle.beat(session, held),
        lambda session, held: lifecycle.record_child(session, held, 1, 1.0),
        lambda session, held: lifecycle.ingest(session, held, [{"type": "progress", "step": 9, "loss": 1.0}], 10),
        lambda session, held: lifecycle.progress(session, held, 1, 2, None),
        lambda session, held: lifecycle.requeue(session, held, "gone"),
        lambda session, held: lifecycle.release(session, held),
        lambda session, held: lifecycle.finish(session, held, "SUCCEEDED"),
    ],
    ids=["beat", "child", "ingest", "progress", "requeue", "release", "finish"],
)
def test_a_worker_without_its_claim_changes_nothing(db: Database, write: Any) -> None:
    job_id = submit(db)
    frozen = claim(db, job_id, "frozen")
    with db.write() as session:
        lifecycle.requeue(session, frozen, "not heard of")
    make_due(db, job_id)
    claim(db, job_id, "successor")
    before = row(db, job_id)
    with pytest.raises(LostClaimError), db.write() as session:
        write(session, frozen)
    after = row(db, job_id)
    columns = [column.key for column in JobRow.__table__.columns]
    assert {c: getattr(after, c) for c in columns} == {c: getattr(before, c) for c in columns}
    with db.read() as session:
        assert session.scalars(select(MetricRow)).all() == []


def test_lost_attempts_wait_longer_each_time_and_a_new_checkpoint_forgives_them(db: Database) -> None:
    job_id = submit(db)
    pauses = []
    for _ in range(6):
        held = claim(db, job_id)
        with db.write() as session:
            lifecycle.requeue(session, held, "killed")
        pauses.append(round(row(db, job_id).not_before - time.time()))
        make_due(db, job_id)
    assert pauses == [1, 2, 4, 8, 10, 10]
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.ingest(session, held, [{"type": "checkpoint", "step": 5}], 1)
    assert row(db, job_id).lost == 0
    with db.write() as session:
        lifecycle.requeue(session, held, "killed")
    make_due(db, job_id)
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.ingest(session, held, [{"type": "checkpoint", "step": 5}], 1)  # the same again: no progress
    assert row(db, job_id).lost == 1


def test_the_twenty_first_death_without_progress_fails_the_job(db: Database) -> None:
    job_id = submit(db)
    for death in range(1, lifecycle.MAX_LOST + 2):
        held = claim(db, job_id)
        with db.write() as session:
            status = lifecycle.requeue(session, held, "killed")
        assert status == ("QUEUED" if death <= lifecycle.MAX_LOST else "FAILED")
        make_due(db, job_id)
    job = row(db, job_id)
    assert job.status == "FAILED" and "21 times" in job.reason and job.fix and job.slot is None


def test_a_claim_by_id_waits_out_the_pause_after_a_lost_attempt(db: Database) -> None:
    job_id = submit(db)
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.requeue(session, held, "killed")
        session.execute(update(JobRow).values(not_before=time.time() + 5))
    with db.write() as session:
        assert lifecycle.claim(session, job_id, "us", None) is None
    assert (row(db, job_id).status, row(db, job_id).attempt) == ("QUEUED", 1)
    make_due(db, job_id)
    assert claim(db, job_id).attempt == 2


def test_a_claim_by_id_respects_a_paused_queue_and_leaves_a_sweep_to_its_children(db: Database) -> None:
    job_id, sweep = submit(db), submit(db, "sweep", queue="")
    with db.write() as session:
        session.execute(update(JobRow).where(JobRow.id == sweep).values(kind="sweep"))
        queue_order.pause_queue(session, "gpu")
    with db.write() as session:
        assert lifecycle.claim(session, job_id, "us", None) is None and lifecycle.claim(session, sweep, "us", None) is None
        queue_order.resume_queue(session, "gpu")
    assert claim(db, job_id).attempt == 1


def test_a_worker_that_ends_in_good_order_costs_the_job_nothing(db: Database) -> None:
    job_id = submit(db)
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.release(session, held)
    job = row(db, job_id)
    assert (job.status, job.lost, job.owner) == ("QUEUED", 0, None)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [job_id]


def test_a_pause_written_before_the_clock_was_set_back_does_not_hold_a_job(db: Database) -> None:
    job_id = submit(db)
    with db.write() as session:
        session.execute(update(JobRow).values(not_before=time.time() + 3600))
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [job_id]


def test_cancelling(db: Database) -> None:
    waiting, running, ended = submit(db, "waiting"), submit(db, "running"), submit(db, "ended")
    done = claim(db, ended)
    with db.write() as session:
        lifecycle.finish(session, done, "SUCCEEDED")
    held = claim(db, running)
    with db.write() as session:
        assert lifecycle.cancel(session, waiting) == "CANCELLED"
        assert lifecycle.cancel(session, running, keep=True) == "RUNNING"
    with db.write() as session:
        assert lifecycle.beat(session, held) == "keep"
    with pytest.raises(StudioError, match="ended already"), db.write() as session:
        lifecycle.cancel(session, ended)
    with pytest.raises(NotFoundError), db.write() as session:
        lifecycle.cancel(session, "nothing")
    with db.write() as session:
        assert lifecycle.claim(session, waiting, "us", None) is None


def test_a_checkpoint_is_kept_once_and_a_running_job_is_still_asked_to_keep_its_own(db: Database) -> None:
    waiting, running = submit(db, "waiting", checkpoint_step=10), submit(db, "running", checkpoint_step=10)
    claim(db, running)
    with db.write() as session:
        assert [lifecycle.cancel(session, job, keep=True) for job in (waiting, running)] == ["CANCELLED", "RUNNING"]
        assert [job.id for job in lifecycle.to_keep(session)] == [waiting]
        for job_id in (waiting, running):
            lifecycle.kept(session, job_id)
        assert not lifecycle.to_keep(session)
    assert (row(db, waiting).cancel, row(db, running).cancel) == (None, "keep")


def test_a_cancelled_job_is_not_queued_again_when_its_worker_dies(db: Database) -> None:
    job_id = submit(db)
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.cancel(session, job_id)
        assert lifecycle.requeue(session, held, "its worker is gone") == "CANCELLED"


def test_events_and_their_offset_change_together(db: Database) -> None:
    job_id = submit(db)
    held = claim(db, job_id)
    events = [{"type": "progress", "step": 1, "max_steps": 4, "loss": 2.0, "eta_s": 3.0}, {"type": "eval", "step": 1, "loss": 2.5}]
    with pytest.raises(RuntimeError), db.write() as session:
        lifecycle.ingest(session, held, events, 100)
        raise RuntimeError("the disk went away")
    assert row(db, job_id).event_offset == 0
    with db.write() as session:
        lifecycle.ingest(session, held, events, 100)
    job = row(db, job_id)
    assert (job.event_offset, job.step, job.max_steps, job.eta_s) == (100, 1, 4, 3.0)
    with db.read() as session:
        assert {(m.kind, m.step, m.values["loss"]) for m in session.scalars(select(MetricRow))} == {("train", 1, 2.0), ("eval", 1, 2.5)}


def test_a_replayed_step_replaces_the_earlier_one(db: Database) -> None:
    job_id = submit(db)
    for loss in (2.0, 1.5):
        held = claim(db, job_id)
        with db.write() as session:
            lifecycle.ingest(session, held, [{"type": "progress", "step": 3, "loss": loss}], 10)
            lifecycle.release(session, held)
    with db.read() as session:
        (metric,) = session.scalars(select(MetricRow))
    assert (metric.values["loss"], metric.attempt) == (1.5, 2)


def test_strange_events_are_passed_over(db: Database) -> None:
    held = claim(db, submit(db))
    strange: list[dict[str, Any]] = [
        {},
        {"type": "progress"},
        {"type": "progress", "step": "x", "loss": 1},
        {"type": "eval", "step": True},
        {"step": 1},
    ]
    with db.write() as session:
        lifecycle.ingest(session, held, strange, 10)
    with db.read() as session:
        assert session.scalars(select(MetricRow)).all() == []


def test_what_happened_is_kept_for_people(db: Database) -> None:
    job_id = submit(db)
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.ingest(session, held, [{"type": "notice", "text": "two rows were cut"}], 10)
        lifecycle.requeue(session, held, "something outside ended it (SIGKILL)")
    with db.read() as session:
        events = [(e.kind, e.attempt) for e in session.scalars(select(JobEventRow).order_by(JobEventRow.id))]
    assert events == [("submitted", 0), ("started", 1), ("notice", 1), ("lost", 1)]
