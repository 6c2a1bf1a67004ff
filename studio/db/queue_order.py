"""Which job is next: what may start now and in which order, paused queues, and moving a job within its queue.

The only code that writes priority and rank of a waiting job; never its status. All functions join the caller's transaction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from studio.db import job_rows
from studio.db.models import JobRow, QueueStateRow
from studio.errors import StudioError
from studio.records import UNSUCCESSFUL, WAITING, JobKind, JobStatus, QueueName

BACKOFF_MAX_S = 10.0  # the longest a job waits after a lost attempt
IN_ORDER = (JobRow.priority.desc(), JobRow.rank, JobRow.created_at, JobRow.id)


def claimable(session: Session, queue: str, limit: int = 8, without: Sequence[str] = ()) -> list[str]:
    """IDs of jobs that may start now, in the order in which they should; none of the kinds `without`."""
    query = select(JobRow.id).where(JobRow.queue == queue, *may_start(), JobRow.kind.not_in(without), _yields_to_none())
    return list(session.scalars(query.order_by(*IN_ORDER).limit(limit)))


def taken_slots(session: Session) -> set[str]:
    """Names of the places on devices where a job runs."""
    held = select(JobRow.slot).where(JobRow.slot.is_not(None), JobRow.status == JobStatus.RUNNING)
    return {name for name in session.scalars(held) if name}


def device_is_free(session: Session) -> bool:
    """Whether no training and no export holds a device."""
    held = select(JobRow.id).where(JobRow.slot.is_not(None), JobRow.status == JobStatus.RUNNING)
    return session.scalar(held.limit(1)) is None


def rank_behind_all(session: Session) -> float:
    """A rank behind all that wait, also when the clock has been set back since."""
    last = session.scalar(select(func.max(JobRow.rank)).where(JobRow.status.in_(WAITING))) or 0.0
    return max(time.time(), math.nextafter(last, math.inf))


def move(session: Session, job_id: str, priority: int | None = None, before: str | None = None) -> None:
    """Give a waiting job another priority, or the place in front of another waiting job. Raises StudioError."""
    job = job_rows.get(session, job_id)
    moved = _waiting_of(session, job)
    if not moved:
        raise StudioError(f"Job {job.name} does not wait: it is {job.status.lower()}.", "Only a job that waits can be moved.")
    if before is not None:
        _place_before(session, moved, job_rows.get(session, before))
        return
    if priority is None:
        raise StudioError("Neither a priority nor a place is given.", "Name a priority, or the job before which this one shall run.")
    ids = [job_id, *(one.id for one in moved)]
    job_rows.changed(session, update(JobRow).where(JobRow.id.in_(ids)).values(priority=priority))


def _waiting_of(session: Session, job: JobRow) -> list[JobRow]:
    """The job itself, or the children of a sweep, as far as they wait."""
    jobs = job_rows.children(session, job) if job.kind == JobKind.SWEEP else [job]
    return [one for one in jobs if one.status in WAITING]


def _place_before(session: Session, moved: Sequence[JobRow], other: JobRow) -> None:
    """Take the other's priority, and deal out the ranks of all that wait with it again: ranks stay distinct times."""
    first = next(iter(_waiting_of(session, other)), None)
    if first is None or first.queue != moved[0].queue:
        raise StudioError(f"Job {other.name} does not wait in the same queue.", "Name a job that waits.")
    ids = {one.id for one in moved}
    if first.id in ids:
        return
    same = (JobRow.status.in_(WAITING), JobRow.queue == first.queue, JobRow.priority == first.priority)
    others = session.scalars(select(JobRow).where(*same).order_by(*IN_ORDER))
    rest = [waiting for waiting in others if waiting.id not in ids]
    place = next(index for index, waiting in enumerate(rest) if waiting.id == first.id)
    order = [*rest[:place], *moved, *rest[place:]]
    least = -math.inf
    for waiting, rank in zip(order, sorted(one.rank for one in order), strict=True):
        least = max(rank, math.nextafter(least, math.inf))
        values = {"rank": least, "priority": first.priority}
        job_rows.changed(session, update(JobRow).where(JobRow.id == waiting.id).values(**values))


def pause_queue(session: Session, queue: str) -> None:
    """Start nothing more from this queue, until resumed; what runs goes on."""
    if session.get(QueueStateRow, queue) is None:
        session.add(QueueStateRow(name=queue, paused_at=time.time()))


def resume_queue(session: Session, queue: str) -> None:
    if (state := session.get(QueueStateRow, queue)) is not None:
        session.delete(state)


def queue_is_paused(session: Session, queue: str) -> bool:
    return session.get(QueueStateRow, queue) is not None


def unreachable(session: Session) -> list[tuple[JobRow, JobRow]]:
    """Jobs that wait for one that will never succeed, each with that one."""
    before = aliased(JobRow)
    query = select(JobRow, before).join(before, JobRow.after_id == before.id)
    rows = session.execute(query.where(JobRow.status == JobStatus.QUEUED, before.status.in_(UNSUCCESSFUL)))
    return [(job, awaited) for job, awaited in rows]


def may_start(job: type[JobRow] = JobRow) -> tuple[ColumnElement[bool], ...]:
    """Conditions: queued, past its back-off, after the job that it waits for, and its queue is not paused."""
    return (job.status == JobStatus.QUEUED, _is_due(job), _is_released(job), _is_open(job))


def _is_open(job: type[JobRow]) -> ColumnElement[bool]:
    return ~exists().where(QueueStateRow.name == job.queue)


def _is_due(job: type[JobRow]) -> ColumnElement[bool]:
    now = time.time()
    # a time further away than any back-off was written by a clock that has been set back since
    return or_(job.not_before <= now, job.not_before > now + BACKOFF_MAX_S)


def _is_released(job: type[JobRow]) -> ColumnElement[bool]:
    before = aliased(JobRow)
    return or_(job.after_id.is_(None), exists().where(before.id == job.after_id, before.status == JobStatus.SUCCEEDED))


def _yields_to_none() -> ColumnElement[bool]:
    """An automatic report waits for the device, and also for whatever is about to take it: it would be interrupted at once."""
    holder, coming = aliased(JobRow), aliased(JobRow)
    is_busy = exists().where(holder.slot.is_not(None), holder.status == JobStatus.RUNNING)
    is_wanted = exists().where(coming.queue == QueueName.GPU, *may_start(coming))
    return or_(JobRow.kind != JobKind.REPORT, JobRow.priority >= 0, ~or_(is_busy, is_wanted))
