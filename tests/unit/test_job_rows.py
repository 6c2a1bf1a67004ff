"""What every move of a job writes on its row, at a time that stands still: leases, back-offs, requests, sweeps, the queue, metrics."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from studio.db import job_rows, lifecycle, observations, queue_order
from studio.db import session as sessions
from studio.db.lifecycle import Claim
from studio.db.models import JobEventRow, JobRow, MetricRow, new_id
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.records import CancelRequest, JobKind, JobStatus
from studio.settings import Settings
from tests.runs import open_store
from tests.stores import Clock


@pytest.fixture
def db(settings: Settings, clock: Clock) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def submit(db: Database, name: str = "job", **values: Any) -> str:
    with db.write() as session:
        return lifecycle.submit(session, JobRow(**{"kind": "train", "name": name, **values})).id


def claim(db: Database, job_id: str, slot: str | None = "device:0") -> Claim:
    with db.write() as session:
        held = lifecycle.claim(session, job_id, "us", slot)
    assert held is not None
    return held


def does(db: Database, move: Any, *given: Any, **named: Any) -> Any:
    with db.write() as session:
        return move(session, *given, **named)


def row(db: Database, job_id: str) -> JobRow:
    with db.read() as session:
        return session.get_one(JobRow, job_id)


def fields(db: Database, job_id: str, *names: str) -> tuple[Any, ...]:
    found = row(db, job_id)
    return tuple(getattr(found, name) for name in names)


def events(db: Database, job_id: str) -> list[tuple[str, int, dict[str, Any]]]:
    with db.read() as session:
        query = select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.id)
        return [(event.kind, event.attempt, event.data) for event in session.scalars(query)]


# one attempt


def test_a_claim_begins_an_attempt_with_a_lease_of_twelve_seconds(db: Database, clock: Clock) -> None:
    job_id = submit(db, cancel="pause", event_offset=5, eta_s=9.0, pid=3, pid_born=4.0)
    held = claim(db, job_id)
    assert held == Claim(job_id, "us", 1)
    names = ("status", "attempt", "owner", "slot", "lease_until", "pid", "pid_born", "cancel", "event_offset", "eta_s", "started_at")
    assert fields(db, job_id, *names) == ("RUNNING", 1, "us", "device:0", clock.now + 12, None, None, None, 0, None, clock.now)
    clock.now += 5
    assert does(db, lifecycle.beat, held) is None
    assert fields(db, job_id, "lease_until", "updated_at") == (clock.now + 12, clock.now)
    does(db, lifecycle.record_child, held, 77, 8.5)
    assert fields(db, job_id, "pid", "pid_born") == (77, 8.5)
    does(db, lifecycle.progress, held, 3, 9, 1.5)
    assert fields(db, job_id, "step", "max_steps", "eta_s", "checkpoint_step", "updated_at") == (3, 9, 1.5, 3, clock.now)
    clock.now += 5
    assert does(db, lifecycle.release, held) == JobStatus.QUEUED
    freed = ("status", "owner", "slot", "lease_until", "pid", "pid_born", "cancel", "eta_s", "not_before", "updated_at", "lost")
    assert fields(db, job_id, *freed) == ("QUEUED", *[None] * 7, 0.0, clock.now, 0)
    claim(db, job_id)
    assert fields(db, job_id, "started_at", "attempt") == (clock.now - 10, 2), "it began when it first began"
    assert events(db, job_id) == [
        ("submitted", 0, {}),
        ("started", 1, {"owner": "us"}),
        ("released", 1, {}),
        ("started", 2, {"owner": "us"}),
    ]


@pytest.mark.parametrize(
    ("status", "reason", "eta", "about"),
    [
        (JobStatus.SUCCEEDED, "", 0.0, {}),
        (JobStatus.FAILED, "bad", None, {"reason": "bad", "fix": "mend"}),
        (JobStatus.CANCELLED, "", None, {}),
    ],
)
def test_an_end_frees_the_slot_and_keeps_what_was_found(
    db: Database, clock: Clock, status: JobStatus, reason: str, eta: float | None, about: dict[str, str]
) -> None:
    held = claim(db, job_id := submit(db))
    does(db, lifecycle.progress, held, 1, 2, 7.0)
    clock.now += 3
    fix = "mend" if reason else ""
    does(db, lifecycle.finish, held, status, reason, fix, result={"loss": 1}, cause="x", remedy={"seed": 1})
    names = ("status", "eta_s", "reason", "fix", "cause", "result", "remedy", "ended_at", "updated_at")
    assert fields(db, job_id, *names) == (status, eta, reason, fix, "x", {"loss": 1}, {"seed": 1}, clock.now, clock.now)
    assert fields(db, job_id, "owner", "slot", "lease_until", "pid", "cancel") == (None,) * 5
    assert events(db, job_id)[-1] == (status.lower(), 1, about)
    with pytest.raises(AssertionError):
        does(db, lifecycle.finish, held, JobStatus.QUEUED)


def test_a_lost_attempt_waits_and_says_how_long(db: Database, clock: Clock) -> None:
    job_id = submit(db)
    for lost, pause in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0)):
        held = claim(db, job_id)
        assert does(db, lifecycle.requeue, held, "killed") == JobStatus.QUEUED
        assert fields(db, job_id, "lost", "not_before", "owner", "eta_s") == (lost, clock.now + pause, None, None)
        assert events(db, job_id)[-1] == ("lost", lost, {"reason": "killed", "again_in_s": pause})
        clock.now += pause - 0.5
        with db.read() as session:
            assert queue_order.claimable(session, "gpu") == []
        clock.now += 0.5
        with db.read() as session:
            assert queue_order.claimable(session, "gpu") == [job_id], "at the very end of the pause"


def test_a_back_off_written_by_a_clock_in_the_future_ends_at_once(db: Database, clock: Clock) -> None:
    at_most, beyond = submit(db, "a", not_before=clock.now + 10), submit(db, "b", not_before=clock.now + 10.5)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [beyond]
    assert does(db, lifecycle.claim, at_most, "us", None) is None and does(db, lifecycle.claim, beyond, "us", None) is not None


def test_the_last_death_fails_the_job_and_says_why(db: Database, clock: Clock) -> None:
    job_id = submit(db, lost=lifecycle.MAX_LOST - 1)
    assert lifecycle.MAX_LOST == 20
    assert does(db, lifecycle.requeue, claim(db, job_id), "SIGKILL") == JobStatus.QUEUED
    clock.now += 60
    assert does(db, lifecycle.requeue, claim(db, job_id), "SIGKILL") == JobStatus.FAILED
    assert row(db, job_id).reason == (
        "The job was killed from outside 21 times without reaching a new checkpoint (the last time: SIGKILL)."
    )


@pytest.mark.parametrize(
    ("request_", "status", "last"),
    [
        (CancelRequest.PAUSE, "PAUSED", "paused"),
        (CancelRequest.CANCEL, "CANCELLED", "cancelled"),
        (CancelRequest.KEEP, "CANCELLED", "cancelled"),
    ],
)
@pytest.mark.parametrize("end", ["requeue", "release", "try_smaller"])
def test_an_attempt_that_ends_does_what_was_asked(db: Database, request_: CancelRequest, status: str, last: str, end: str) -> None:
    held = claim(db, job_id := submit(db, lost=2))
    if request_ == CancelRequest.PAUSE:
        does(db, lifecycle.pause, job_id)
    else:
        does(db, lifecycle.cancel, job_id, keep=request_ == CancelRequest.KEEP)
    assert does(db, lifecycle.beat, held) == request_
    moves = {"requeue": ("gone",), "release": (), "try_smaller": ({"a": 1}, "smaller")}
    assert does(db, getattr(lifecycle, end), held, *moves[end]) == status
    assert fields(db, job_id, "status", "cancel", "not_before", "lost", "owner") == (status, None, 0.0, 2, None)
    assert events(db, job_id)[-1] == (last, 1, {})
    assert (row(db, job_id).config == {"a": 1}, row(db, job_id).is_halved) == ((end == "try_smaller",) * 2)


# what people ask for


def test_what_people_ask_of_a_job_in_each_state(db: Database, clock: Clock) -> None:
    waiting, paused, running = submit(db, "waiting"), submit(db, "paused"), submit(db, "running")
    does(db, lifecycle.pause, paused)
    held = claim(db, running)
    clock.now += 7
    assert [does(db, lifecycle.cancel, job, keep=True) for job in (waiting, paused)] == ["CANCELLED"] * 2
    assert fields(db, waiting, "status", "cancel", "ended_at", "updated_at") == ("CANCELLED", None, clock.now, clock.now), (
        "no checkpoint to keep"
    )
    assert [kind for kind, *_ in events(db, paused)] == ["submitted", "paused", "cancelled"]
    assert does(db, lifecycle.resume, running) == "RUNNING" and row(db, running).cancel is None
    assert does(db, lifecycle.cancel, running) == "RUNNING" and fields(db, running, "cancel", "updated_at") == ("cancel", clock.now)
    assert does(db, lifecycle.resume, running) == "RUNNING" and row(db, running).cancel == "cancel", "only a pause is taken back"
    with pytest.raises(StudioError, match="Job running is being stopped"):
        does(db, lifecycle.pause, running)
    does(db, lifecycle.finish, held, JobStatus.SUCCEEDED)
    for move, said in (
        (lifecycle.cancel, "Job running has ended already (succeeded)."),
        (lifecycle.pause, "Job running has ended already (succeeded)."),
        (lifecycle.resume, "Job running has ended (succeeded)."),
        (lifecycle.retry, "Job running has not failed: it is succeeded."),
    ):
        with pytest.raises(StudioError) as caught:
            does(db, move, running)
        assert caught.value.message == said
    with pytest.raises(NotFoundError, match="There is no job 'x'"):
        does(db, lifecycle.cancel, "x")


def test_pausing_and_resuming_move_the_times_and_are_noted_once(db: Database, clock: Clock) -> None:
    job_id = submit(db, not_before=clock.now + 5)
    clock.now += 1
    assert [does(db, lifecycle.pause, job_id) for _ in range(2)] == ["PAUSED"] * 2
    assert row(db, job_id).updated_at == clock.now
    clock.now += 1
    assert [does(db, lifecycle.resume, job_id) for _ in range(2)] == ["QUEUED"] * 2
    assert fields(db, job_id, "updated_at", "not_before") == (clock.now, 0.0)
    assert [kind for kind, *_ in events(db, job_id)] == ["submitted", "paused", "continued"]
    does(db, lifecycle.release, claim(db, job_id))
    does(db, lifecycle.pause, job_id)
    assert events(db, job_id)[-1] == ("paused", 1, {})


def test_a_retry_begins_behind_all_that_wait_without_the_old_ending(db: Database, clock: Clock) -> None:
    job_id, other = submit(db, "a", lost=4), submit(db, "b")
    does(db, lifecycle.finish, claim(db, job_id), JobStatus.FAILED, "r", "f", result={"a": 1}, cause="c", remedy={"b": 2})
    clock.now -= 100  # a clock that was set back
    assert does(db, lifecycle.retry, job_id) == "QUEUED"
    names = ("reason", "fix", "cause", "remedy", "result", "ended_at", "cancel", "lost", "not_before", "updated_at")
    assert fields(db, job_id, *names) == ("", "", "", {}, {}, None, None, 0, 0.0, clock.now)
    assert row(db, job_id).rank > row(db, other).rank
    assert events(db, job_id)[-1] == ("retried", 1, {})
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [other, job_id]


def test_a_job_after_another_is_retried_unless_that_one_failed_too(db: Database) -> None:
    first = submit(db, "first")
    second = submit(db, "second", after_id=first)
    does(db, lifecycle.cancel, second)
    assert does(db, lifecycle.retry, second) == "QUEUED"
    does(db, lifecycle.cancel, second)
    does(db, lifecycle.finish, claim(db, first), JobStatus.FAILED)
    with pytest.raises(StudioError) as caught:
        does(db, lifecycle.retry, second)
    assert (caught.value.message, caught.value.fix) == ("Job second runs after first, which ended failed.", "Retry first first.")


def test_what_waits_in_vain_is_cancelled_and_what_waits_with_hope_is_not(db: Database) -> None:
    failing, going, done = submit(db, "failing"), submit(db, "going"), submit(db, "done")
    jobs = {name: submit(db, f"after {name}", after_id=job) for name, job in (("failing", failing), ("going", going), ("done", done))}
    aside = submit(db, "aside", after_id=failing)
    does(db, lifecycle.pause, aside)
    does(db, lifecycle.finish, claim(db, failing), JobStatus.FAILED)
    does(db, lifecycle.finish, claim(db, done), JobStatus.SUCCEEDED)
    with db.read() as session:
        assert [(job.name, awaited.name) for job, awaited in queue_order.unreachable(session)] == [("after failing", "failing")]
        assert queue_order.claimable(session, "gpu") == [going, jobs["done"]]
    does(db, lifecycle.cancel_unreachable)
    assert {name: row(db, job).status for name, job in jobs.items()} == {"failing": "CANCELLED", "going": "QUEUED", "done": "QUEUED"}
    assert fields(db, jobs["failing"], "reason", "fix") == (
        "It was to run after failing, which ended failed.",
        "Start it again without waiting for a job, or after another one.",
    )
    assert (row(db, aside).status, row(db, jobs["done"]).reason) == ("PAUSED", "")


# sweeps


def sweep(db: Database, *statuses: str) -> tuple[str, list[str]]:
    parent = submit(db, "sweep", kind="sweep", queue="")
    children = [submit(db, f"run {n}", parent_id=parent) for n in range(len(statuses))]
    for child, status in zip(children, statuses, strict=True):
        if status == "PAUSED":
            does(db, lifecycle.pause, child)
        elif status == "CANCELLED":
            does(db, lifecycle.cancel, child)
        elif status != "QUEUED":
            held = claim(db, child, None)
            if status != "RUNNING":
                does(db, lifecycle.finish, held, JobStatus(status))
    return parent, children


@pytest.mark.parametrize(
    ("statuses", "status", "done", "reason"),
    [
        (["QUEUED", "QUEUED"], "QUEUED", 0, ""),
        (["QUEUED", "PAUSED"], "QUEUED", 0, ""),
        (["PAUSED", "PAUSED"], "PAUSED", 0, ""),
        (["RUNNING", "PAUSED"], "RUNNING", 0, ""),
        (["SUCCEEDED", "QUEUED"], "RUNNING", 1, ""),
        (["FAILED", "PAUSED"], "PAUSED", 1, ""),
        (["SUCCEEDED", "SUCCEEDED"], "SUCCEEDED", 2, ""),
        (["SUCCEEDED", "CANCELLED", "FAILED", "FAILED"], "FAILED", 4, "Of 4 runs 2 failed and 1 cancelled."),
        (["SUCCEEDED", "CANCELLED"], "CANCELLED", 2, "Of 2 runs 1 cancelled."),
    ],
)
def test_a_sweep_adds_up_its_runs(db: Database, clock: Clock, statuses: list[str], status: str, done: int, reason: str) -> None:
    parent, children = sweep(db, *statuses)
    found = row(db, parent)
    assert (found.status, found.step, found.max_steps, found.reason, bool(found.fix)) == (status, done, len(statuses), reason, bool(reason))
    has_ended = done == len(statuses)
    assert (found.ended_at, found.updated_at) == (clock.now if has_ended else None, clock.now)
    assert row(db, children[0]).step is None, "nothing is written on the runs"


def test_a_sweep_began_with_its_first_run_and_a_retry_clears_its_end(db: Database, clock: Clock) -> None:
    parent, (one, two) = sweep(db, "QUEUED", "QUEUED")
    assert row(db, parent).started_at is None
    held = claim(db, one)
    began, clock.now = clock.now, clock.now + 9
    does(db, lifecycle.finish, held, JobStatus.FAILED, "bad")
    does(db, lifecycle.finish, claim(db, two), JobStatus.SUCCEEDED)
    assert fields(db, parent, "status", "started_at", "ended_at") == ("FAILED", began, clock.now)
    assert does(db, lifecycle.retry, parent) == "RUNNING"
    assert fields(db, parent, "reason", "fix", "ended_at", "started_at") == ("", "", None, began)
    assert (row(db, one).status, row(db, two).status) == ("QUEUED", "SUCCEEDED")
    with db.read() as session:
        assert [job.id for job in job_rows.children(session, row(db, parent))] == [one, two]


def test_a_sweep_refuses_what_all_its_runs_refuse(db: Database) -> None:
    parent, _ = sweep(db, "SUCCEEDED", "SUCCEEDED")
    with pytest.raises(StudioError, match="Job run 0 has ended already"):
        does(db, lifecycle.pause, parent)
    with pytest.raises(StudioError, match="Job run 0 has not failed"):
        does(db, lifecycle.retry, parent)
    empty = submit(db, "empty", kind="sweep", queue="")
    with pytest.raises(StudioError, match="Sweep empty has no jobs"):
        does(db, lifecycle.cancel, empty)
    assert row(db, empty).status == "QUEUED"


def test_the_checkpoints_of_a_cancelled_sweep_are_kept_where_there_are_any(db: Database) -> None:
    parent, (one, two) = sweep(db, "QUEUED", "QUEUED")
    with db.write() as session:
        session.get_one(JobRow, one).checkpoint_step = 1
    assert does(db, lifecycle.cancel, parent, keep=True) == "CANCELLED"
    with db.read() as session:
        assert [job.id for job in lifecycle.to_keep(session)] == [one]
    does(db, lifecycle.kept, one)
    assert (row(db, one).cancel, row(db, two).cancel) == (None, None)


# the queue


def test_eight_jobs_at_once_in_their_order_without_the_kinds_left_out(db: Database, clock: Clock) -> None:
    ids = [submit(db, f"job {n}", kind="export" if n == 3 else "train") for n in range(10)]
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == ids[:8]
        assert queue_order.claimable(session, "gpu", limit=2, without=["train"]) == [ids[3]]
        assert queue_order.claimable(session, "gpu", limit=2) == ids[:2] and queue_order.claimable(session, "light") == []
    ranks = [row(db, job).rank for job in ids]
    assert ranks == sorted(set(ranks)), "distinct, though the clock stands still"


def test_a_slot_and_the_device_are_free_when_nothing_runs_there(db: Database) -> None:
    def free() -> tuple[bool, bool, bool]:
        with db.read() as session:
            return (
                "device:0" not in queue_order.taken_slots(session),
                "device:1" not in queue_order.taken_slots(session),
                queue_order.device_is_free(session),
            )

    assert free() == (True, True, True)
    claim(db, submit(db, "light", queue="light"), None)
    assert free() == (True, True, True)
    held = claim(db, submit(db, "a"))
    assert free() == (False, True, False)
    does(db, lifecycle.finish, held, JobStatus.SUCCEEDED)
    assert free() == (True, True, True)


def test_an_automatic_report_yields_to_the_device_and_one_that_was_asked_for_does_not(db: Database) -> None:
    automatic = submit(db, "automatic", kind="report", queue="light", priority=-1)
    asked = submit(db, "asked", kind="report", queue="light", priority=0)
    other = submit(db, "other", kind="compare", queue="light", priority=-1)

    def light() -> list[str]:
        with db.read() as session:
            return queue_order.claimable(session, "light")

    assert light() == [asked, automatic, other]
    coming = submit(db, "training")
    assert light() == [asked, other], "it would be interrupted at once"
    does(db, lifecycle.pause, coming)
    assert light() == [asked, automatic, other]
    does(db, lifecycle.resume, coming)
    claim(db, coming)
    assert light() == [asked, other]
    does(db, lifecycle.cancel, automatic)


def test_moving_gives_a_priority_or_a_place(db: Database) -> None:
    one, two, three, light = submit(db, "one"), submit(db, "two"), submit(db, "three"), submit(db, "light", queue="light")
    does(db, queue_order.move, two, priority=3)
    does(db, queue_order.move, three, before=three)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [two, one, three]
    does(db, queue_order.move, three, priority=0)
    running = claim(db, one)
    for job_id, values, said in (
        (one, {"priority": 1}, "Job one does not wait: it is running."),
        (two, {}, "Neither a priority nor a place is given."),
        (two, {"before": one}, "Job one does not wait in the same queue."),
        (two, {"before": light}, "Job light does not wait in the same queue."),
    ):
        with pytest.raises(StudioError) as caught:
            does(db, queue_order.move, job_id, **values)
        assert caught.value.message == said
    does(db, lifecycle.release, running)
    does(db, lifecycle.pause, two)
    does(db, queue_order.move, two, before=one)
    does(db, lifecycle.resume, two)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [two, one, three]
    assert row(db, two).priority == 0


def test_a_sweep_moves_as_one_and_none_but_its_own_priority_changes(db: Database) -> None:
    other = submit(db, "other")
    parent, children = sweep(db, "SUCCEEDED", "QUEUED", "QUEUED")
    does(db, queue_order.move, parent, priority=2)
    assert [row(db, job).priority for job in (parent, *children, other)] == [2, 0, 2, 2, 0]
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [*children[1:], other]
    does(db, queue_order.move, parent, before=other)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [*children[1:], other]
    does(db, queue_order.move, other, before=parent)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [other, *children[1:]]


def test_equal_ranks_are_dealt_out_apart(db: Database) -> None:
    one, two, three = submit(db, "one", created_at=1.0), submit(db, "two", created_at=2.0), submit(db, "three", created_at=3.0)
    with db.write() as session:
        for job in (one, two, three):
            session.get_one(JobRow, job).rank = 5.0
    does(db, queue_order.move, three, before=two)
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [one, three, two]
    ranks = [row(db, job).rank for job in (one, three, two)]
    assert ranks[0] == 5.0 and ranks == sorted(set(ranks))


def test_queues_are_paused_one_by_one(db: Database, clock: Clock) -> None:
    gpu, light = submit(db, "gpu"), submit(db, "light", queue="light")
    does(db, queue_order.resume_queue, "gpu")
    does(db, queue_order.pause_queue, "gpu")
    with db.read() as session:
        assert (queue_order.queue_is_paused(session, "gpu"), queue_order.queue_is_paused(session, "light")) == (True, False)
        assert (queue_order.claimable(session, "gpu"), queue_order.claimable(session, "light")) == ([], [light])
    does(db, queue_order.resume_queue, "gpu")
    with db.read() as session:
        assert queue_order.claimable(session, "gpu") == [gpu] and not queue_order.queue_is_paused(session, "gpu")


# what trainers report


def test_what_a_trainer_reports_becomes_points_notices_and_progress(db: Database) -> None:
    held = claim(db, job_id := submit(db))
    given: list[dict[str, Any]] = [
        {"type": "start", "step": 0, "max_steps": 9, "eta_s": 4.0, "rows": 3},
        {"type": "progress", "step": 1, "max_steps": 9, "eta_s": 3.0, "loss": 2.0},
        {"type": "progress", "step": 2, "max_steps": 9, "eta_s": 2.0},
        *({"type": kind, "step": 2, "value": kind} for kind in ("eval", "machine", "drift", "samples", "rows", "other")),
        {"type": "eval", "step": True, "value": 1},
        {"type": "eval", "step": "2", "value": 1},
        {"type": "notice", "text": "mind"},
        {"type": "resumed", "step": 2, "from": "checkpoint-2"},
        {"type": "checkpoint", "step": 2},
        {"type": "checkpoint", "step": 1},
    ]
    with db.write() as session:
        reported = observations.keep(session, job_id, 1, given)
    assert (reported.values, reported.checkpoint_step) == ({"step": 2, "max_steps": 9, "eta_s": 2.0}, 2)
    with db.read() as session:
        points = {(point.kind, point.step): point.values for point in session.scalars(select(MetricRow))}
    assert points == {
        ("train", 1): {"eta_s": 3.0, "loss": 2.0},
        **{(kind, 2): {"value": kind} for kind in ("eval", "machine", "drift", "samples", "rows")},
    }
    assert events(db, job_id)[2:] == [
        ("start", 1, {"eta_s": 4.0, "rows": 3}),
        ("notice", 1, {"text": "mind"}),
        ("resumed", 1, {"from": "checkpoint-2"}),
    ]
    assert observations.keep(None, job_id, 1, []) == observations.Reported()  # type: ignore[arg-type]
    does(db, lifecycle.ingest, held, [{"type": "checkpoint", "step": 7}], 40)
    does(db, lifecycle.ingest, held, [{"type": "checkpoint", "step": 6}], 41)
    assert fields(db, job_id, "checkpoint_step", "event_offset") == (7, 41)


def test_a_point_is_replaced_by_the_same_or_a_later_attempt_only(db: Database) -> None:
    job_id = submit(db)
    for attempt, loss, kept in ((2, 1.0, 1.0), (2, 0.9, 0.9), (1, 0.8, 0.9), (3, 0.7, 0.7)):
        does(db, observations.put_metric, job_id, attempt, "train", 5, {"loss": loss})
        with db.read() as session:
            (point,) = session.scalars(select(MetricRow))
            assert (point.values, point.attempt) == ({"loss": kept}, max(attempt, point.attempt))


def test_only_a_checkpoint_further_on_forgives_lost_attempts(db: Database) -> None:
    held = claim(db, job_id := submit(db, checkpoint_step=5, lost=3))
    for step, lost in ((4, 3), (5, 3), (6, 0)):
        does(db, lifecycle.ingest, held, [{"type": "checkpoint", "step": step}], step)
        assert fields(db, job_id, "lost", "checkpoint_step") == (lost, max(5, step))


# rows and the database


def test_running_jobs_are_those_that_were_claimed(db: Database) -> None:
    parent, (child,) = sweep(db, "RUNNING")
    submit(db, "waiting")
    assert row(db, parent).status == "RUNNING"
    with db.read() as session:
        assert [job.id for job in job_rows.running(session)] == [child]
        with pytest.raises(NotFoundError) as caught:
            job_rows.get(session, "gone")
    assert caught.value.message == "There is no job 'gone'." and "studio jobs list" in caught.value.fix
    ids = {new_id() for _ in range(50)}
    assert len(ids) == 50 and {len(one) for one in ids} == {10} and not set("".join(ids)) & set("lo01")


def test_a_sqlite_database_is_private_waits_half_a_minute_and_writes_at_once(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/new/studio.db")
    assert db.path == tmp_path / "new" / "studio.db" and db.home == tmp_path / "new"
    with db.write() as session:
        session.execute(text("CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER REFERENCES t(a))"))
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 30_000}
    assert db.path.stat().st_mode & 0o777 == 0o600
    other = sqlite3.connect(db.path, timeout=0, isolation_level=None)
    with db.read() as session:
        session.execute(text("SELECT * FROM t"))
        other.execute("BEGIN IMMEDIATE")  # whoever looks holds nobody up
        other.execute("ROLLBACK")
    with db.write(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RuntimeError), db.write() as session:
        session.execute(text("INSERT INTO t VALUES (1, NULL)"))
        raise RuntimeError("half way")
    with pytest.raises(IntegrityError), db.write() as session:
        session.execute(text("INSERT INTO t VALUES (1, 7)"))
    assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
    other.close()
    readers = [db.engine.connect() for _ in range(48)]  # gradio's 40 threads and more
    assert db.engine.pool.checkedin() == 0 and db.engine.pool.size() == 48  # type: ignore[attr-defined]
    for reader in readers:
        reader.close()
    db.dispose()


def test_a_database_is_one_per_process_and_a_servers_says_where_its_home_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    assert sessions.database(url) is sessions.database(url) and sessions.database(url).home == tmp_path
    assert Database(url, home=tmp_path / "elsewhere").home == tmp_path / "elsewhere"
    assert Database(url, "DELETE").engine.connect().exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
    with pytest.raises(ValueError, match="name it"):
        Database("postgresql://localhost/x")
    made: dict[str, Any] = {}
    engine = Database(f"sqlite:///{tmp_path}/b.db").engine

    def create(url: str, **options: Any) -> Any:
        made.update(options)
        return engine

    monkeypatch.setattr(sessions, "create_engine", create)
    served = Database("postgresql://localhost/x", home=tmp_path)
    assert (served.path, served.home, made) == (None, tmp_path, {"pool_pre_ping": True, "pool_size": 40})
    with pytest.raises(OperationalError), served.write() as session:
        session.execute(text("SELECT * FROM nothing"))


def test_paths_in_the_home_are_stored_without_it(db: Database) -> None:
    inside, outside = str(db.home / "runs" / "x"), "/elsewhere/x"
    one = submit(db, "one", run_dir=inside, config={"data": inside, "note": f"see {inside}", "other": outside, "n": [1]})
    two = submit(db, "two", run_dir=outside, config={"note": "nothing"})
    with db.read() as session:
        stored = {job: folder for job, folder in session.execute(text("SELECT id, run_dir FROM jobs"))}
        config = session.execute(text("SELECT config FROM jobs WHERE id = :id"), {"id": one}).scalar()
    assert stored == {one: "runs/x", two: outside} and "$STUDIO_HOME/runs/x" in str(config)
    assert fields(db, one, "run_dir", "config") == (inside, {"data": inside, "note": f"see {inside}", "other": outside, "n": [1]})
    assert fields(db, two, "run_dir", "config") == (outside, {"note": "nothing"})
    assert row(db, submit(db, "three", kind=JobKind.COMPARE)).run_dir == ""
