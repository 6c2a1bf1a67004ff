"""The life of a job: submit, claim, beat, ingest, requeue, finish; cancel, pause, resume, retry.

The only code that writes status, attempt, owner, lease, slot and cancel request. Every write of an attempt is fenced by
(id, owner, attempt): a worker that has lost its claim changes nothing. What a person asks of a sweep is done to its children;
the status of a sweep follows theirs in the same transaction. All functions join the caller's transaction.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Update, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from studio.db import job_rows, observations, queue_order
from studio.db.models import JobRow
from studio.db.queue_order import BACKOFF_MAX_S
from studio.errors import StudioError
from studio.records import ENDED, UNSUCCESSFUL, WAITING, CancelRequest, JobKind, JobStatus

LEASE_S = 12.0  # a claim whose lease has not moved for this long may be taken away
MAX_LOST = 20  # deaths from outside without a new checkpoint
BACKOFF_FIRST_S = 1.0
FREE: dict[str, Any] = {"owner": None, "slot": None, "lease_until": None, "pid": None, "pid_born": None, "cancel": None}


class LostClaimError(Exception):
    """This attempt is no longer ours: another worker has taken the job over, or it has ended."""


@dataclass(frozen=True)
class Claim:
    """The right to write one attempt of one job."""

    job_id: str
    owner: str
    attempt: int


# an attempt, as its worker sees it


def submit(session: Session, job: JobRow) -> JobRow:
    """Queue a new job. It is safe from here on: workers find the row even when no notification reaches them."""
    job.status, job.attempt = JobStatus.QUEUED, 0
    job.rank = queue_order.rank_behind_all(session)
    session.add(job)
    session.flush()
    job_rows.note(session, job.id, 0, "submitted")
    _follow_children(session, job.parent_id)
    return job


def claim(session: Session, job_id: str, owner: str, slot: str | None) -> Claim | None:
    """Begin the next attempt, or None: somebody else has it, it may not start yet, or its device slot is taken."""
    now = time.time()
    change = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.kind != JobKind.SWEEP, *queue_order.may_start())
        .values(
            status=JobStatus.RUNNING,
            attempt=JobRow.attempt + 1,
            owner=owner,
            slot=slot,
            lease_until=now + LEASE_S,
            pid=None,
            pid_born=None,
            cancel=None,
            event_offset=0,
            eta_s=None,
            started_at=func.coalesce(JobRow.started_at, now),
            updated_at=now,
        )
    )
    try:
        with session.begin_nested():
            if job_rows.changed(session, change) != 1:
                return None
    except IntegrityError:  # the unique index on the slot
        return None
    attempt = session.scalar(select(JobRow.attempt).where(JobRow.id == job_id))
    assert attempt is not None
    job_rows.note(session, job_id, attempt, "started", {"owner": owner})
    _follow_parent(session, job_id)
    return Claim(job_id, owner, attempt)


def beat(session: Session, held: Claim) -> CancelRequest | None:
    """Renew the lease; what a person has asked of the job meanwhile. Raises LostClaimError."""
    now = time.time()
    _write(session, held, lease_until=now + LEASE_S, updated_at=now)
    request = session.scalar(select(JobRow.cancel).where(JobRow.id == held.job_id))
    return CancelRequest(request) if request else None


def record_child(session: Session, held: Claim, pid: int, born: float) -> None:
    """Remember the process that does the work, so that others can end it when its worker is gone."""
    _write(session, held, pid=pid, pid_born=born)


def ingest(session: Session, held: Claim, events: Iterable[dict[str, Any]], offset: int) -> None:
    """Take over what the attempt has reported up to byte `offset` of its events; offset and rows change together."""
    reported = observations.keep(session, held.job_id, held.attempt, events)
    if reported.checkpoint_step is not None:
        # only a checkpoint further than any before shows that the job makes progress
        newer = update(JobRow).where(*_fence(held), JobRow.checkpoint_step < reported.checkpoint_step)
        job_rows.changed(session, newer.values(checkpoint_step=reported.checkpoint_step, lost=0))
    _write(session, held, event_offset=offset, updated_at=time.time(), **reported.values)


def progress(session: Session, held: Claim, step: int, max_steps: int, eta_s: float | None) -> None:
    """Progress of a job that has no event file; anything new counts as a checkpoint."""
    _write(session, held, step=step, max_steps=max_steps, eta_s=eta_s, checkpoint_step=step, lost=0, updated_at=time.time())


def requeue(session: Session, held: Claim, reason: str) -> JobStatus:
    """The attempt died from outside: back into the queue after a pause, unless that has happened too often. The new status."""
    job = _held_job(session, held)
    if job.cancel:
        return _as_requested(session, held, job.cancel)
    lost = job.lost + 1
    if lost > MAX_LOST:
        finish(
            session,
            held,
            JobStatus.FAILED,
            f"The job was killed from outside {lost} times without reaching a new checkpoint (the last time: {reason}).",
            "Find out what ends it (memory limits, a batch system, a supervisor), or make checkpoints more frequent with save_steps.",
        )
        return JobStatus.FAILED
    pause = min(BACKOFF_FIRST_S * 2 ** (lost - 1), BACKOFF_MAX_S)
    _back_to_queue(session, held, lost=lost, not_before=time.time() + pause)
    job_rows.note(session, held.job_id, held.attempt, "lost", {"reason": reason, "again_in_s": pause})
    return JobStatus.QUEUED


def release(session: Session, held: Claim) -> JobStatus:
    """The worker ends in good order and hands the job back; that costs the job nothing. The new status."""
    if request := _held_job(session, held).cancel:
        return _as_requested(session, held, request)
    _back_to_queue(session, held, not_before=0.0)
    job_rows.note(session, held.job_id, held.attempt, "released")
    return JobStatus.QUEUED


def try_smaller(session: Session, held: Claim, config: dict[str, Any], text: str) -> JobStatus:
    """Memory ran out: queue the job again with a smaller batch, this once. The new status."""
    request = _held_job(session, held).cancel
    _write(session, held, config=config, is_halved=True)
    job_rows.note(session, held.job_id, held.attempt, "notice", {"text": text})
    if request:
        return _as_requested(session, held, request)
    _back_to_queue(session, held, not_before=0.0)
    return JobStatus.QUEUED


def finish(
    session: Session,
    held: Claim,
    status: JobStatus,
    reason: str = "",
    fix: str = "",
    result: dict[str, Any] | None = None,
    cause: str = "",
    remedy: dict[str, Any] | None = None,
) -> None:
    """End the job for good; `cause` and `remedy` (options that would help) are what a program reads of a failure."""
    assert status in ENDED
    now = time.time()
    _write(
        session,
        held,
        status=status,
        reason=reason,
        fix=fix,
        cause=cause,
        remedy=remedy or {},
        result=result or {},
        ended_at=now,
        updated_at=now,
        eta_s=0.0 if status == JobStatus.SUCCEEDED else None,
        **FREE,
    )
    about = {"reason": reason, "fix": fix} if reason else {}
    job_rows.note(session, held.job_id, held.attempt, status.lower(), about)
    _follow_parent(session, held.job_id)


# what people ask for


def cancel(session: Session, job_id: str, keep: bool = False) -> JobStatus:
    """End a waiting job at once; ask a running one to end. The status afterwards. Raises StudioError for one that has ended."""
    job = job_rows.get(session, job_id)
    if job.kind == JobKind.SWEEP:
        return _to_children(session, job, lambda child: cancel(session, child, keep))
    now = time.time()
    ended = {**FREE, "status": JobStatus.CANCELLED, "ended_at": now, "updated_at": now}
    if keep and job.checkpoint_step:
        ended["cancel"] = CancelRequest.KEEP
    waiting = update(JobRow).where(JobRow.id == job_id, JobRow.status.in_(WAITING))
    if job_rows.changed(session, waiting.values(**ended)):
        job_rows.note(session, job_id, job.attempt, "cancelled")
        _follow_children(session, job.parent_id)
        return JobStatus.CANCELLED
    request = CancelRequest.KEEP if keep else CancelRequest.CANCEL
    if job_rows.changed(session, _if_running(job_id).values(cancel=request, updated_at=now)):
        return JobStatus.RUNNING
    raise StudioError(f"Job {job.name} has ended already ({job.status.lower()}).", "Only a job that waits or runs can be cancelled.")


def pause(session: Session, job_id: str) -> JobStatus:
    """Set a waiting job aside; ask a running one to stop at a checkpoint. The status afterwards. Raises StudioError."""
    job = job_rows.get(session, job_id)
    if job.kind == JobKind.SWEEP:
        return _to_children(session, job, lambda child: pause(session, child))
    if job.status in ENDED:
        raise StudioError(f"Job {job.name} has ended already ({job.status.lower()}).", "Only a job that waits or runs can be paused.")
    if job.status == JobStatus.RUNNING:
        may_pause = _if_running(job_id).where(or_(JobRow.cancel.is_(None), JobRow.cancel == CancelRequest.PAUSE))
        if not job_rows.changed(session, may_pause.values(cancel=CancelRequest.PAUSE, updated_at=time.time())):
            raise StudioError(f"Job {job.name} is being stopped.", "Wait until it has ended, then `studio jobs retry` it.")
    elif _move(session, job, JobStatus.QUEUED, JobStatus.PAUSED):
        job_rows.note(session, job_id, job.attempt, "paused")
        _follow_children(session, job.parent_id)
    return _status(session, job_id)


def resume(session: Session, job_id: str) -> JobStatus:
    """Put a paused job back in its place; it continues from its checkpoint. The status afterwards. Raises StudioError."""
    job = job_rows.get(session, job_id)
    if job.kind == JobKind.SWEEP:
        return _to_children(session, job, lambda child: resume(session, child))
    if job.status in ENDED:
        raise StudioError(f"Job {job.name} has ended ({job.status.lower()}).", f"`studio jobs retry {job.name}` runs it again.")
    if _move(session, job, JobStatus.PAUSED, JobStatus.QUEUED, not_before=0.0):
        job_rows.note(session, job_id, job.attempt, "continued")
        _follow_children(session, job.parent_id)
    else:  # one that is on its way to a pause is queued again when it gets there
        pausing = _if_running(job_id).where(JobRow.cancel == CancelRequest.PAUSE)
        job_rows.changed(session, pausing.values(cancel=None))
    return _status(session, job_id)


def retry(session: Session, job_id: str) -> JobStatus:
    """Queue a job that failed or was cancelled once more; it continues from its last verified checkpoint. Raises StudioError."""
    job = job_rows.get(session, job_id)
    if job.kind == JobKind.SWEEP:
        return _to_children(session, job, lambda child: retry(session, child))
    if job.status not in UNSUCCESSFUL:
        raise StudioError(
            f"Job {job.name} has not failed: it is {job.status.lower()}.", f"`studio jobs clone {job.name}` makes another one like it."
        )
    awaited = session.get(JobRow, job.after_id) if job.after_id else None
    if awaited and awaited.status in UNSUCCESSFUL:
        raise StudioError(
            f"Job {job.name} runs after {awaited.name}, which ended {awaited.status.lower()}.", f"Retry {awaited.name} first."
        )
    ending: dict[str, Any] = {"reason": "", "fix": "", "cause": "", "remedy": {}, "result": {}, "ended_at": None, "cancel": None}
    place = {"lost": 0, "not_before": 0.0, "rank": queue_order.rank_behind_all(session)}
    if _move(session, job, JobStatus(job.status), JobStatus.QUEUED, **ending, **place):
        job_rows.note(session, job_id, job.attempt, "retried")
        _follow_children(session, job.parent_id)
    return _status(session, job_id)


def cancel_unreachable(session: Session) -> None:
    """Cancel jobs that wait for one that will never succeed."""
    for job, awaited in queue_order.unreachable(session):
        cancel(session, job.id)
        reason = f"It was to run after {awaited.name}, which ended {awaited.status.lower()}."
        fix = "Start it again without waiting for a job, or after another one."
        job_rows.changed(session, update(JobRow).where(JobRow.id == job.id).values(reason=reason, fix=fix))


def to_keep(session: Session) -> list[JobRow]:
    """Jobs that were cancelled while they waited, and whose last checkpoint is to become an adapter."""
    asked = select(JobRow).where(JobRow.status == JobStatus.CANCELLED, JobRow.cancel == CancelRequest.KEEP)
    return list(session.scalars(asked))


def kept(session: Session, job_id: str) -> None:
    cancelled = update(JobRow).where(JobRow.id == job_id, JobRow.status == JobStatus.CANCELLED)
    job_rows.changed(session, cancelled.values(cancel=None))


# writing


def _move(session: Session, job: JobRow, before: JobStatus, after: JobStatus, **values: Any) -> bool:
    """Move a job that nobody holds from one status to another, unless its status has changed meanwhile."""
    still = update(JobRow).where(JobRow.id == job.id, JobRow.status == before)
    return job_rows.changed(session, still.values(status=after, updated_at=time.time(), **values)) == 1


def _if_running(job_id: str) -> Update:
    return update(JobRow).where(JobRow.id == job_id, JobRow.status == JobStatus.RUNNING)


def _status(session: Session, job_id: str) -> JobStatus:
    return JobStatus(session.scalars(select(JobRow.status).where(JobRow.id == job_id)).one())


def _fence(held: Claim) -> tuple[Any, ...]:
    return (
        JobRow.id == held.job_id,
        JobRow.owner == held.owner,
        JobRow.attempt == held.attempt,
        JobRow.status == JobStatus.RUNNING,
    )


def _write(session: Session, held: Claim, **values: Any) -> None:
    if job_rows.changed(session, update(JobRow).where(*_fence(held)).values(**values)) != 1:
        raise LostClaimError(f"job {held.job_id}, attempt {held.attempt}")


def _held_job(session: Session, held: Claim) -> JobRow:
    job = session.get(JobRow, held.job_id, populate_existing=True)
    if job is None or (job.owner, job.attempt, job.status) != (held.owner, held.attempt, JobStatus.RUNNING):
        raise LostClaimError(f"job {held.job_id}, attempt {held.attempt}")
    return job


def _as_requested(session: Session, held: Claim, request: str) -> JobStatus:
    """The attempt is over, and a person had asked for that: set the job aside or end it. The new status."""
    if request == CancelRequest.PAUSE:
        _back_to_queue(session, held, JobStatus.PAUSED, not_before=0.0)
        job_rows.note(session, held.job_id, held.attempt, "paused")
        return JobStatus.PAUSED
    finish(session, held, JobStatus.CANCELLED)
    return JobStatus.CANCELLED


def _back_to_queue(session: Session, held: Claim, status: JobStatus = JobStatus.QUEUED, **values: Any) -> None:
    _write(session, held, status=status, eta_s=None, updated_at=time.time(), **FREE, **values)
    _follow_parent(session, held.job_id)


# sweeps


def _to_children(session: Session, sweep: JobRow, act: Callable[[str], object]) -> JobStatus:
    """Do it to every child that it can be done to; the sweep's status afterwards. Raises StudioError when there is none."""
    refused: list[StudioError] = []
    members = job_rows.children(session, sweep)
    for child in members:
        try:
            act(child.id)
        except StudioError as exc:
            refused.append(exc)
    if len(refused) == len(members):
        raise next(iter(refused), StudioError(f"Sweep {sweep.name} has no jobs.", "Start it once more with `studio sweep`."))
    return _status(session, sweep.id)


def _follow_parent(session: Session, job_id: str) -> None:
    _follow_children(session, session.scalar(select(JobRow.parent_id).where(JobRow.id == job_id)))


def _follow_children(session: Session, sweep_id: str | None) -> None:
    """Give a sweep the status that its children add up to."""
    if sweep_id is None:
        return
    session.flush()
    counts = Counter(session.scalars(select(JobRow.status).where(JobRow.parent_id == sweep_id)))
    status, total, now = _sum_of(counts), counts.total(), time.time()
    done = sum(counts[ended] for ended in ENDED)
    values: dict[str, Any] = {"status": status, "step": done, "max_steps": total, "updated_at": now}
    values |= {"ended_at": None, "reason": "", "fix": ""}
    if status == JobStatus.RUNNING:
        values["started_at"] = func.coalesce(JobRow.started_at, now)
    elif status in ENDED:
        values["ended_at"] = now
        if bad := [f"{counts[one]} {one.lower()}" for one in (JobStatus.FAILED, JobStatus.CANCELLED) if counts[one]]:
            values["reason"] = f"Of {total} runs {' and '.join(bad)}."
            values["fix"] = "Look at those; `studio jobs retry` on the sweep runs them again."
    job_rows.changed(session, update(JobRow).where(JobRow.id == sweep_id, JobRow.kind == JobKind.SWEEP).values(**values))


def _sum_of(counts: Counter[str]) -> JobStatus:
    """RUNNING as soon as one has begun and not all have ended; at the end the worst."""
    has_ended = any(counts[status] for status in ENDED)
    if counts[JobStatus.RUNNING] or (counts[JobStatus.QUEUED] and has_ended):
        return JobStatus.RUNNING
    order = (JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.SUCCEEDED)
    return next((status for status in order if counts[status]), JobStatus.QUEUED)
