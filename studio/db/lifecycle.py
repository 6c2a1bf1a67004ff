"""The life of a job: submit, claim, beat, ingest, requeue, finish, cancel.

The only code that writes status, attempt, owner, lease, slot and cancel. Every write of an attempt is fenced by
(id, owner, attempt): a worker that has lost its claim changes nothing. All functions join the caller's transaction.
Knows no files, no processes and no queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, exists, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from studio.db.models import Job, JobEvent, Metric
from studio.errors import NotFoundError, StudioError

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
LEASE_S = 12.0  # a claim whose lease has not moved for this long may be taken away
MAX_LOST = 20  # deaths from outside without a new checkpoint
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 10.0


class LostClaimError(Exception):
    """This attempt is no longer ours: another worker has taken the job over, or it has ended."""


@dataclass(frozen=True)
class Claim:
    """The right to write one attempt of one job."""

    job_id: str
    owner: str
    attempt: int


def submit(session: Session, job: Job) -> Job:
    """Queue a new job. It is safe from here on: workers find the row even when no bell rings."""
    job.status, job.attempt = "QUEUED", 0
    session.add(job)
    session.flush()
    note(session, job.id, 0, "submitted")
    return job


def claimable(session: Session, queue: str, limit: int = 8) -> list[str]:
    """IDs of jobs that may start now, in the order in which they should."""
    query = select(Job.id).where(Job.queue == queue, Job.status == "QUEUED", _is_due(), _is_released())
    return list(session.scalars(query.order_by(Job.priority.desc(), Job.created_at, Job.id).limit(limit)))


def slot_is_free(session: Session, slot: str) -> bool:
    return session.scalar(select(Job.id).where(Job.slot == slot, Job.status == "RUNNING")) is None


def claim(session: Session, job_id: str, owner: str, slot: str | None) -> Claim | None:
    """Begin the next attempt, or None: somebody else has it, it is not due, or its device slot is taken."""
    now = time.time()
    change = (
        update(Job)
        .where(Job.id == job_id, Job.status == "QUEUED", _is_due(), _is_released())
        .values(
            status="RUNNING",
            attempt=Job.attempt + 1,
            owner=owner,
            slot=slot,
            lease_until=now + LEASE_S,
            pid=None,
            pid_born=None,
            cancel=None,
            event_offset=0,
            eta_s=None,
            started_at=func.coalesce(Job.started_at, now),
            updated_at=now,
        )
    )
    try:
        with session.begin_nested():
            if _changed(session, change) != 1:
                return None
    except IntegrityError:  # the unique index on the slot
        return None
    attempt = session.scalar(select(Job.attempt).where(Job.id == job_id))
    assert attempt is not None
    note(session, job_id, attempt, "started", {"owner": owner})
    return Claim(job_id, owner, attempt)


def beat(session: Session, held: Claim) -> str | None:
    """Renew the lease; what a person asked for meanwhile: None, "cancel" or "keep". Raises LostClaimError."""
    now = time.time()
    _write(session, held, lease_until=now + LEASE_S, updated_at=now)
    return session.scalar(select(Job.cancel).where(Job.id == held.job_id))


def record_child(session: Session, held: Claim, pid: int, born: float) -> None:
    """Remember the process that does the work, so that others can end it when its worker is gone."""
    _write(session, held, pid=pid, pid_born=born)


def ingest(session: Session, held: Claim, events: Iterable[dict[str, Any]], offset: int) -> None:
    """Take over what the attempt has reported up to byte `offset` of its events; offset and rows change together."""
    values: dict[str, Any] = {"event_offset": offset, "updated_at": time.time()}
    for event in events:
        step = event.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            step = None
        kind = event.get("type")
        if kind in ("progress", "start"):
            values |= {"step": step, "max_steps": event.get("max_steps"), "eta_s": event.get("eta_s")}
        if kind == "progress" and step is not None and "loss" in event:
            put_metric(session, held, "train", step, event)
        elif kind == "eval" and step is not None:
            put_metric(session, held, "eval", step, event)
        elif kind == "checkpoint" and step is not None:
            _new_checkpoint(session, held, step)
        elif kind in ("start", "notice", "resumed"):
            note(session, held.job_id, held.attempt, kind, _plain(event))
    _write(session, held, **values)


def progress(session: Session, held: Claim, step: int, max_steps: int, eta_s: float | None) -> None:
    """Progress of a job that has no event file; anything new counts as a checkpoint."""
    _write(session, held, step=step, max_steps=max_steps, eta_s=eta_s, checkpoint_step=step, lost=0, updated_at=time.time())


def requeue(session: Session, held: Claim, reason: str) -> str:
    """The attempt died from outside: back into the queue after a pause, unless that has happened too often. The new status."""
    job = _held_job(session, held)
    if job.cancel:
        finish(session, held, "CANCELLED")
        return "CANCELLED"
    lost = job.lost + 1
    if lost > MAX_LOST:
        finish(
            session,
            held,
            "FAILED",
            f"The job was killed from outside {lost} times without reaching a new checkpoint (the last time: {reason}).",
            "Find out what ends it (memory limits, a batch system, a supervisor), or make checkpoints more frequent with save_steps.",
        )
        return "FAILED"
    pause = min(BACKOFF_FIRST_S * 2 ** (lost - 1), BACKOFF_MAX_S)
    _back_to_queue(session, held, lost=lost, not_before=time.time() + pause)
    note(session, held.job_id, held.attempt, "lost", {"reason": reason, "again_in_s": pause})
    return "QUEUED"


def release(session: Session, held: Claim) -> str:
    """The worker ends in good order and hands the job back; that costs the job nothing. The new status."""
    if _held_job(session, held).cancel:
        finish(session, held, "CANCELLED")
        return "CANCELLED"
    _back_to_queue(session, held, not_before=0.0)
    note(session, held.job_id, held.attempt, "released")
    return "QUEUED"


def finish(session: Session, held: Claim, status: str, reason: str = "", fix: str = "", result: dict[str, Any] | None = None) -> None:
    """End the job for good."""
    assert status in ENDED
    now = time.time()
    _write(
        session,
        held,
        status=status,
        reason=reason,
        fix=fix,
        result=result or {},
        ended_at=now,
        updated_at=now,
        eta_s=0.0 if status == "SUCCEEDED" else None,
        **_FREE,
    )
    note(session, held.job_id, held.attempt, status.lower(), {"reason": reason, "fix": fix} if reason else {})


def cancel(session: Session, job_id: str, keep: bool = False) -> str:
    """End a waiting job at once; ask a running one to end. The status afterwards. Raises StudioError for one that has ended."""
    job = session.get(Job, job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id!r}.", "`studio jobs list` shows them.")
    now = time.time()
    waiting = update(Job).where(Job.id == job_id, Job.status.in_(("QUEUED", "PAUSED")))
    ended = {**_FREE, "status": "CANCELLED", "ended_at": now, "updated_at": now, "cancel": "keep" if keep and job.checkpoint_step else None}
    if _changed(session, waiting.values(**ended)):
        note(session, job_id, job.attempt, "cancelled")
        return "CANCELLED"
    running = update(Job).where(Job.id == job_id, Job.status == "RUNNING")
    if _changed(session, running.values(cancel="keep" if keep else "cancel", updated_at=now)):
        return "RUNNING"
    raise StudioError(f"Job {job.name} has ended already ({job.status.lower()}).", "Only a job that waits or runs can be cancelled.")


def has_unreachable(session: Session) -> bool:
    """Whether a job waits for one that will never succeed."""
    return bool(_unreachable(session))


def _unreachable(session: Session) -> list[tuple[Job, Job]]:
    before = aliased(Job)
    query = select(Job, before).join(before, Job.after_id == before.id)
    rows = session.execute(query.where(Job.status == "QUEUED", before.status.in_(("FAILED", "CANCELLED"))))
    return [(job, awaited) for job, awaited in rows]


def cancel_unreachable(session: Session) -> None:
    """Cancel jobs that wait for one that will never succeed."""
    for job, awaited in _unreachable(session):
        cancel(session, job.id)
        reason = f"It was to run after {awaited.name}, which ended {awaited.status.lower()}."
        fix = "Submit it again without --after, or after another job."
        _changed(session, update(Job).where(Job.id == job.id).values(reason=reason, fix=fix))


def running(session: Session) -> list[Job]:
    return list(session.scalars(select(Job).where(Job.status == "RUNNING")))


def to_keep(session: Session) -> list[Job]:
    """Jobs that were cancelled while they waited, and whose last checkpoint shall become an adapter."""
    return list(session.scalars(select(Job).where(Job.status == "CANCELLED", Job.cancel == "keep")))


def kept(session: Session, job_id: str) -> None:
    _changed(session, update(Job).where(Job.id == job_id, Job.status == "CANCELLED").values(cancel=None))


def note(session: Session, job_id: str, attempt: int, kind: str, data: dict[str, Any] | None = None) -> None:
    """Keep one event for people."""
    session.add(JobEvent(job_id=job_id, attempt=attempt, kind=kind, data=data or {}))


def put_metric(session: Session, held: Claim, kind: str, step: int, event: dict[str, Any]) -> None:
    """One point of the curve; a step replayed by a later attempt replaces the earlier one."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert
    row = insert(Metric).values(job_id=held.job_id, kind=kind, step=step, attempt=held.attempt, values=_plain(event))
    session.execute(
        row.on_conflict_do_update(
            index_elements=["job_id", "kind", "step"],
            set_={"attempt": row.excluded.attempt, "values": row.excluded["values"]},
            where=Metric.attempt <= row.excluded.attempt,
        )
    )


_FREE: dict[str, Any] = {"owner": None, "slot": None, "lease_until": None, "pid": None, "pid_born": None, "cancel": None}


def _is_due() -> ColumnElement[bool]:
    now = time.time()
    # a time further away than any back-off was written by a clock that has been set back since
    return or_(Job.not_before <= now, Job.not_before > now + BACKOFF_MAX_S)


def _is_released() -> ColumnElement[bool]:
    before = aliased(Job)
    return or_(Job.after_id.is_(None), exists().where(before.id == Job.after_id, before.status == "SUCCEEDED"))


def _changed(session: Session, statement: Any) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount


def _write(session: Session, held: Claim, **values: Any) -> None:
    fence = (Job.id == held.job_id, Job.owner == held.owner, Job.attempt == held.attempt, Job.status == "RUNNING")
    if _changed(session, update(Job).where(*fence).values(**values)) != 1:
        raise LostClaimError(f"job {held.job_id}, attempt {held.attempt}")


def _held_job(session: Session, held: Claim) -> Job:
    job = session.get(Job, held.job_id, populate_existing=True)
    if job is None or (job.owner, job.attempt, job.status) != (held.owner, held.attempt, "RUNNING"):
        raise LostClaimError(f"job {held.job_id}, attempt {held.attempt}")
    return job


def _back_to_queue(session: Session, held: Claim, **values: Any) -> None:
    _write(session, held, status="QUEUED", eta_s=None, updated_at=time.time(), **_FREE, **values)


def _new_checkpoint(session: Session, held: Claim, step: int) -> None:
    # only a checkpoint further than any before shows that the job gets on
    newer = update(Job).where(Job.id == held.job_id, Job.owner == held.owner, Job.attempt == held.attempt, Job.checkpoint_step < step)
    _changed(session, newer.values(checkpoint_step=step, lost=0))


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("type", "step", "max_steps")}
