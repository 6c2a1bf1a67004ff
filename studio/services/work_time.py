"""How long jobs have worked: the time of their attempts. Waiting in the queue, pauses and time between attempts don't count."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.db.models import JobEventRow, JobRow
from studio.records import JobKind, JobStatus

START = "started"
END = frozenset({"succeeded", "failed", "cancelled", "lost", "released", "paused"})
TOLD = "notice"  # the last word of an attempt that ran out of memory and is tried again with a smaller batch
WHOLE = frozenset({JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED})  # after one attempt: worked from start to end
Moment = tuple[str, float]  # kind of an event, and when it was


def seconds_of_work(session: Session, jobs: Sequence[JobRow]) -> dict[str, float | None]:
    """Job -> seconds; None for one that has never started. A sweep has worked as long as its runs together."""
    sweeps = [job.id for job in jobs if job.kind == JobKind.SWEEP]
    children = list(session.scalars(select(JobRow).where(JobRow.parent_id.in_(sweeps)))) if sweeps else []
    single = {job.id: job for job in (*jobs, *children) if job.kind != JobKind.SWEEP}
    events = _events(session, [job.id for job in single.values() if not _is_plain(job)])
    found = {job.id: _of(job, events.get(job.id, [])) for job in single.values()}
    for sweep in sweeps:
        parts = [found[child.id] for child in children if child.parent_id == sweep]
        worked = [part for part in parts if part is not None]
        found[sweep] = sum(worked) if worked else None
    return found


def worked(events: Iterable[Moment], now: float) -> float:
    """Seconds between each start and the end of that attempt; one that has no end runs until the next start, or until `now`."""
    total, begun, last = 0.0, None, 0.0
    for kind, at in events:
        if kind == START:
            if begun is not None:  # the attempt ended without an event of its own
                total += last - begun
            begun = at
        elif kind in END and begun is not None:
            total += at - begun
            begun = None
        last = at
    if begun is not None:
        total += max(now - begun, 0.0)
    return total


def _is_plain(job: JobRow) -> bool:
    """Whether its only attempt began and ended with the job."""
    return job.attempt <= 1 and job.status in WHOLE


def _of(job: JobRow, events: Sequence[Moment]) -> float | None:
    if job.started_at is None:
        return None
    if not _is_plain(job):
        return worked(events, time.time())
    return max((job.ended_at or time.time()) - job.started_at, 0.0)


def _events(session: Session, jobs: Sequence[str]) -> dict[str, list[Moment]]:
    found: dict[str, list[Moment]] = defaultdict(list)
    if not jobs:
        return found
    query = select(JobEventRow.job_id, JobEventRow.kind, JobEventRow.at).where(JobEventRow.job_id.in_(jobs))
    for job, kind, at in session.execute(query.where(JobEventRow.kind.in_([START, TOLD, *END])).order_by(JobEventRow.id)):
        found[job].append((kind, at))
    return found
