"""Pause, resume, retry, move and sweeps on real SQLite: no job lost, none run when it should wait, order as asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from studio.db import job_rows, lifecycle, queue_order
from studio.db.lifecycle import Claim
from studio.db.models import JobEventRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.settings import Settings
from tests.runs import open_store


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def submit(db: Database, *names: str, **values: object) -> list[str]:
    with db.write() as session:
        return [lifecycle.submit(session, JobRow(kind="train", name=name, **values)).id for name in names]


def claim(db: Database, job_id: str) -> Claim:
    with db.write() as session:
        held = lifecycle.claim(session, job_id, "us", "device:0")
    assert held is not None
    return held


def row(db: Database, job_id: str) -> JobRow:
    with db.read() as session:
        return session.get_one(JobRow, job_id)


def order(db: Database) -> list[str]:
    with db.read() as session:
        return [session.get_one(JobRow, job_id).name for job_id in queue_order.claimable(session, "gpu", limit=99)]


def test_a_paused_job_waits_until_resumed_and_keeps_its_place(db: Database) -> None:
    first, second = submit(db, "first", "second")
    with db.write() as session:
        assert lifecycle.pause(session, first) == lifecycle.pause(session, first) == "PAUSED"
        assert lifecycle.claim(session, first, "us", None) is None
    assert order(db) == ["second"]
    with db.write() as session:
        assert lifecycle.resume(session, first) == "QUEUED"
    assert order(db) == ["first", "second"]
    assert row(db, second).status == "QUEUED"


@pytest.mark.parametrize("end", ["release", "requeue"])
def test_a_running_job_that_shall_pause_is_paused_however_its_attempt_ends(db: Database, end: str) -> None:
    (job_id,) = submit(db, "job")
    held = claim(db, job_id)
    with db.write() as session:
        assert lifecycle.pause(session, job_id) == "RUNNING"
        assert lifecycle.beat(session, held) == "pause"
        status = lifecycle.release(session, held) if end == "release" else lifecycle.requeue(session, held, "killed")
    job = row(db, job_id)
    assert status == job.status == "PAUSED"
    assert (job.owner, job.slot, job.lease_until, job.cancel, job.lost) == (None, None, None, None, 0)
    with db.write() as session:
        assert lifecycle.resume(session, job_id) == "QUEUED"
    assert claim(db, job_id).attempt == 2


def test_resuming_a_job_on_its_way_to_a_pause_queues_it_again(db: Database) -> None:
    (job_id,) = submit(db, "job")
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.pause(session, job_id)
        assert lifecycle.resume(session, job_id) == "RUNNING"
        assert lifecycle.release(session, held) == "QUEUED"


def test_a_wish_to_cancel_outlives_a_wish_to_pause(db: Database) -> None:
    (job_id,) = submit(db, "job")
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.pause(session, job_id)
        lifecycle.cancel(session, job_id)
        with pytest.raises(StudioError, match="being stopped"):
            lifecycle.pause(session, job_id)
        assert lifecycle.release(session, held) == "CANCELLED"


def test_a_paused_queue_starts_nothing_and_finishes_what_runs(db: Database, settings: Settings) -> None:
    running, waiting = submit(db, "running", "waiting")
    (light,) = submit(db, "light", queue="light")
    held = claim(db, running)
    with db.write() as session:
        queue_order.pause_queue(session, "gpu")
        queue_order.pause_queue(session, "gpu")
    with db.write() as session:
        lifecycle.beat(session, held)
        lifecycle.finish(session, held, "SUCCEEDED")
        assert lifecycle.claim(session, waiting, "us", "device:0") is None
        assert queue_order.claimable(session, "light") == [light]
    db.dispose()
    again = Database(settings.db_url)  # after a restart
    with again.write() as session:
        assert queue_order.queue_is_paused(session, "gpu") and queue_order.claimable(session, "gpu") == []
        queue_order.resume_queue(session, "gpu")
        assert queue_order.claimable(session, "gpu") == [waiting]
    again.dispose()


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
def test_a_retried_job_is_the_same_job_with_a_new_attempt(db: Database, status: str) -> None:
    (job_id,) = submit(db, "job")
    held = claim(db, job_id)
    with db.write() as session:
        lifecycle.finish(session, held, status, "broken", "mend it", cause="diverged", remedy={"seed": 1})
        assert lifecycle.retry(session, job_id) == "QUEUED"
    job = row(db, job_id)
    assert (job.reason, job.fix, job.cause, job.remedy, job.ended_at, job.lost) == ("", "", "", {}, None, 0)
    assert claim(db, job_id).attempt == 2


def test_what_has_not_failed_is_not_retried(db: Database) -> None:
    job_id, after = submit(db, "job", "after")
    with pytest.raises(StudioError, match="has not failed"), db.write() as session:
        lifecycle.retry(session, job_id)
    with db.write() as session:
        session.get_one(JobRow, after).after_id = job_id
    with db.write() as session:
        lifecycle.cancel(session, job_id)
        lifecycle.cancel_unreachable(session)
    with pytest.raises(StudioError, match="runs after job") as caught, db.write() as session:
        lifecycle.retry(session, after)
    assert caught.value.fix == "Retry job first."


def test_a_job_moves_in_front_of_any_other_and_none_is_lost(db: Database) -> None:
    names = ["a", "b", "c", "d"]
    ids = dict(zip(names, submit(db, *names), strict=True))
    expected = list(names)
    for moved, before in itertools.permutations(names, 2):
        with db.write() as session:
            queue_order.move(session, ids[moved], before=ids[before])
        expected.remove(moved)
        expected.insert(expected.index(before), moved)
        assert order(db) == expected
    submit(db, "late")
    assert order(db) == [*expected, "late"]


def test_in_front_of_an_urgent_job_a_job_becomes_urgent(db: Database) -> None:
    urgent, usual, moved = submit(db, "urgent", "usual", "moved")
    with db.write() as session:
        queue_order.move(session, urgent, priority=5)
        queue_order.move(session, moved, before=urgent)
    assert order(db) == ["moved", "urgent", "usual"]
    assert row(db, moved).priority == 5 and row(db, usual).priority == 0


def test_what_runs_or_has_ended_has_no_place(db: Database) -> None:
    running, waiting = submit(db, "running", "waiting")
    claim(db, running)
    for job_id, values in ((running, {"priority": 1}), (waiting, {"before": running}), (waiting, {})):
        with pytest.raises(StudioError), db.write() as session:
            queue_order.move(session, job_id, **values)  # type: ignore[arg-type]


# sweeps


@pytest.fixture
def sweep(db: Database) -> tuple[str, list[str]]:
    with db.write() as session:
        parent = lifecycle.submit(session, JobRow(kind="sweep", queue="", name="sweep")).id
    return parent, submit(db, "one", "two", parent_id=parent)


def test_a_sweep_follows_its_children(db: Database, sweep: tuple[str, list[str]]) -> None:
    parent, (one, two) = sweep
    assert row(db, parent).status == "QUEUED"
    with db.write() as session:
        assert lifecycle.claim(session, parent, "us", None) is None  # nobody runs it
    held = claim(db, one)
    assert row(db, parent).status == "RUNNING" and row(db, parent).started_at
    with db.write() as session:
        assert [job.id for job in job_rows.running(session)] == [one]  # nobody has to give the sweep back
        lifecycle.finish(session, held, "SUCCEEDED")
    job = row(db, parent)
    assert (job.status, job.step, job.max_steps, job.ended_at) == ("RUNNING", 1, 2, None)
    held = claim(db, two)
    with db.write() as session:
        lifecycle.finish(session, held, "FAILED", "broken")
    job = row(db, parent)
    assert (job.status, job.reason) == ("FAILED", "Of 2 runs 1 failed.") and job.ended_at and job.fix


def test_what_is_asked_of_a_sweep_is_done_to_its_children(db: Database, sweep: tuple[str, list[str]]) -> None:
    parent, (one, two) = sweep
    held = claim(db, one)
    with db.write() as session:
        lifecycle.finish(session, held, "SUCCEEDED")
        assert lifecycle.pause(session, parent) == "PAUSED"
    assert row(db, two).status == "PAUSED"
    with db.write() as session:
        assert lifecycle.resume(session, parent) == "RUNNING"
        assert lifecycle.cancel(session, parent) == "CANCELLED"
    assert (row(db, one).status, row(db, two).status) == ("SUCCEEDED", "CANCELLED")
    with db.write() as session:
        assert lifecycle.retry(session, parent) == "RUNNING"
    assert (row(db, one).status, row(db, two).status) == ("SUCCEEDED", "QUEUED")
    (other,) = submit(db, "other")
    with db.write() as session:
        queue_order.move(session, other, before=parent)
    assert order(db) == ["other", "two"]
    with db.write() as session:
        queue_order.move(session, parent, before=other)
    assert order(db) == ["two", "other"]


def test_a_job_after_a_sweep_waits_for_all_of_it(db: Database, sweep: tuple[str, list[str]]) -> None:
    parent, children = sweep
    (last,) = submit(db, "last", after_id=parent)
    for child in children:
        held = claim(db, child)
        with db.write() as session:
            assert lifecycle.claim(session, last, "us", None) is None
            lifecycle.finish(session, held, "SUCCEEDED")
    assert row(db, parent).status == "SUCCEEDED"
    claim(db, last)


def test_memory_that_ran_out_costs_no_attempt_from_outside_and_is_told(db: Database) -> None:
    (job_id,) = submit(db, "job", config={"per_device_train_batch_size": 4})
    held = claim(db, job_id)
    with db.write() as session:
        assert lifecycle.try_smaller(session, held, {"per_device_train_batch_size": 2}, "once more") == "QUEUED"
    job = row(db, job_id)
    assert (job.status, job.is_halved, job.lost, job.config) == ("QUEUED", True, 0, {"per_device_train_batch_size": 2})
    with db.read() as session:
        assert [e.data["text"] for e in session.scalars(select(JobEventRow).where(JobEventRow.kind == "notice"))] == ["once more"]
    with pytest.raises(lifecycle.LostClaimError), db.write() as session:
        lifecycle.try_smaller(session, held, {}, "again")
