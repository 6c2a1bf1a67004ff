"""The life of a job: submit, claim, beat, ingest, requeue, finish; cancel, pause, resume, retry, move.

The only code that writes status, attempt, owner, lease, slot, cancel and the order of the queue. Every write of an attempt
is fenced by (id, owner, attempt): a worker that has lost its claim changes nothing. What a person asks of a sweep is done to
its children; the status of a sweep follows theirs in the same transaction. All functions join the caller's transaction.
Knows no files, no processes and no queue.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, exists, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from studio.db.models import JobEventRow, JobRow, MetricRow, QueueState
from studio.errors import NotFoundError, StudioError

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
WAITING = ("QUEUED", "PAUSED")
OBSERVED = ("eval", "machine", "drift", "samples", "rows")  # events of a trainer that are kept by their step, as its points are
SWEEP = "sweep"  # the kind of a job that only stands for its children
REPORT = "report"  # the kind of a job that follows a training by itself: below priority 0 it gives way to whatever holds a device
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


def submit(session: Session, job: JobRow) -> JobRow:
    """Queue a new job. It is safe from here on: workers find the row even when no bell rings."""
    job.status, job.attempt = "QUEUED", 0
    # behind all that wait, also when the clock has been set back since
    last = session.scalar(select(func.max(JobRow.rank)).where(JobRow.status.in_(WAITING))) or 0.0
    job.rank = max(time.time(), math.nextafter(last, math.inf))
    session.add(job)
    session.flush()
    note(session, job.id, 0, "submitted")
    _follow_children(session, job.parent_id)
    return job


def claimable(session: Session, queue: str, limit: int = 8, without: Sequence[str] = ()) -> list[str]:
    """IDs of jobs that may start now, in the order in which they should; none of the kinds `without`."""
    query = select(JobRow.id).where(JobRow.queue == queue, JobRow.status == "QUEUED", _is_due(), _is_released(), _is_open())
    query = query.where(JobRow.kind.not_in(without), _gives_way_to_nobody())
    return list(session.scalars(query.order_by(*IN_ORDER).limit(limit)))


def slot_is_free(session: Session, slot: str) -> bool:
    return session.scalar(select(JobRow.id).where(JobRow.slot == slot, JobRow.status == "RUNNING")) is None


def device_is_free(session: Session) -> bool:
    """Whether no training and no export holds a device."""
    return session.scalar(select(JobRow.id).where(JobRow.slot.is_not(None), JobRow.status == "RUNNING").limit(1)) is None


def claim(session: Session, job_id: str, owner: str, slot: str | None) -> Claim | None:
    """Begin the next attempt, or None: somebody else has it, it is not due, or its device slot is taken."""
    now = time.time()
    change = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status == "QUEUED", JobRow.kind != SWEEP, _is_due(), _is_released(), _is_open())
        .values(
            status="RUNNING",
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
            if _changed(session, change) != 1:
                return None
    except IntegrityError:  # the unique index on the slot
        return None
    attempt = session.scalar(select(JobRow.attempt).where(JobRow.id == job_id))
    assert attempt is not None
    note(session, job_id, attempt, "started", {"owner": owner})
    _follow_parent(session, job_id)
    return Claim(job_id, owner, attempt)


def beat(session: Session, held: Claim) -> str | None:
    """Renew the lease; what a person asked for meanwhile: None, "cancel", "keep" or "pause". Raises LostClaimError."""
    now = time.time()
    _write(session, held, lease_until=now + LEASE_S, updated_at=now)
    return session.scalar(select(JobRow.cancel).where(JobRow.id == held.job_id))


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
        elif kind in OBSERVED and step is not None:
            put_metric(session, held, str(kind), step, event)
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
        return _as_wished(session, held, job.cancel)
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
    if wish := _held_job(session, held).cancel:
        return _as_wished(session, held, wish)
    _back_to_queue(session, held, not_before=0.0)
    note(session, held.job_id, held.attempt, "released")
    return "QUEUED"


def try_smaller(session: Session, held: Claim, config: dict[str, Any], text: str) -> str:
    """Memory ran out: queue the job again with a smaller batch, this once. The new status."""
    wish = _held_job(session, held).cancel
    _write(session, held, config=config, is_halved=True)
    note(session, held.job_id, held.attempt, "notice", {"text": text})
    if wish:
        return _as_wished(session, held, wish)
    _back_to_queue(session, held, not_before=0.0)
    return "QUEUED"


def finish(
    session: Session,
    held: Claim,
    status: str,
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
        eta_s=0.0 if status == "SUCCEEDED" else None,
        **_FREE,
    )
    note(session, held.job_id, held.attempt, status.lower(), {"reason": reason, "fix": fix} if reason else {})
    _follow_parent(session, held.job_id)


def cancel(session: Session, job_id: str, keep: bool = False) -> str:
    """End a waiting job at once; ask a running one to end. The status afterwards. Raises StudioError for one that has ended."""
    job = _job(session, job_id)
    if job.kind == SWEEP:
        return _to_children(session, job, lambda child: cancel(session, child, keep))
    now = time.time()
    waiting = update(JobRow).where(JobRow.id == job_id, JobRow.status.in_(WAITING))
    ended = {**_FREE, "status": "CANCELLED", "ended_at": now, "updated_at": now, "cancel": "keep" if keep and job.checkpoint_step else None}
    if _changed(session, waiting.values(**ended)):
        note(session, job_id, job.attempt, "cancelled")
        _follow_children(session, job.parent_id)
        return "CANCELLED"
    running = update(JobRow).where(JobRow.id == job_id, JobRow.status == "RUNNING")
    if _changed(session, running.values(cancel="keep" if keep else "cancel", updated_at=now)):
        return "RUNNING"
    raise StudioError(f"Job {job.name} has ended already ({job.status.lower()}).", "Only a job that waits or runs can be cancelled.")


def pause(session: Session, job_id: str) -> str:
    """Set a waiting job aside; ask a running one to stop at a checkpoint. The status afterwards. Raises StudioError."""
    job = _job(session, job_id)
    if job.kind == SWEEP:
        return _to_children(session, job, lambda child: pause(session, child))
    if job.status in ENDED:
        raise StudioError(f"Job {job.name} has ended already ({job.status.lower()}).", "Only a job that waits or runs can be paused.")
    if job.status == "RUNNING":
        running = update(JobRow).where(
            JobRow.id == job_id, JobRow.status == "RUNNING", or_(JobRow.cancel.is_(None), JobRow.cancel == "pause")
        )
        if not _changed(session, running.values(cancel="pause", updated_at=time.time())):
            raise StudioError(f"Job {job.name} is being stopped.", "Wait until it has ended, then `studio jobs retry` it.")
    elif _changed(
        session, update(JobRow).where(JobRow.id == job_id, JobRow.status == "QUEUED").values(status="PAUSED", updated_at=time.time())
    ):
        note(session, job_id, job.attempt, "paused")
        _follow_children(session, job.parent_id)
    return _status(session, job_id)


def resume(session: Session, job_id: str) -> str:
    """Put a paused job back in its place; it goes on from its checkpoint. The status afterwards. Raises StudioError."""
    job = _job(session, job_id)
    if job.kind == SWEEP:
        return _to_children(session, job, lambda child: resume(session, child))
    if job.status in ENDED:
        raise StudioError(f"Job {job.name} has ended ({job.status.lower()}).", f"`studio jobs retry {job.name}` runs it again.")
    back = (
        update(JobRow).where(JobRow.id == job_id, JobRow.status == "PAUSED").values(status="QUEUED", not_before=0.0, updated_at=time.time())
    )
    if _changed(session, back):
        note(session, job_id, job.attempt, "continued")
        _follow_children(session, job.parent_id)
    else:  # one that is on its way to a pause comes back by itself
        _changed(
            session, update(JobRow).where(JobRow.id == job_id, JobRow.status == "RUNNING", JobRow.cancel == "pause").values(cancel=None)
        )
    return _status(session, job_id)


def retry(session: Session, job_id: str) -> str:
    """Queue a job that failed or was cancelled once more; it goes on from its last verified checkpoint. Raises StudioError."""
    job = _job(session, job_id)
    if job.kind == SWEEP:
        return _to_children(session, job, lambda child: retry(session, child))
    if job.status not in ("FAILED", "CANCELLED"):
        raise StudioError(
            f"Job {job.name} has not failed: it is {job.status.lower()}.", f"`studio jobs clone {job.name}` makes another one like it."
        )
    awaited = session.get(JobRow, job.after_id) if job.after_id else None
    if awaited and awaited.status in ("FAILED", "CANCELLED"):
        raise StudioError(
            f"Job {job.name} runs after {awaited.name}, which ended {awaited.status.lower()}.", f"Retry {awaited.name} first."
        )
    anew: dict[str, Any] = {
        "status": "QUEUED",
        "reason": "",
        "fix": "",
        "cause": "",
        "remedy": {},
        "result": {},
        "ended_at": None,
        "cancel": None,
    }
    last = session.scalar(select(func.max(JobRow.rank)).where(JobRow.status.in_(WAITING))) or 0.0
    place = {"lost": 0, "not_before": 0.0, "rank": max(time.time(), math.nextafter(last, math.inf)), "updated_at": time.time()}
    if _changed(session, update(JobRow).where(JobRow.id == job_id, JobRow.status == job.status).values(**anew, **place)):
        note(session, job_id, job.attempt, "retried")
        _follow_children(session, job.parent_id)
    return _status(session, job_id)


def move(session: Session, job_id: str, priority: int | None = None, before: str | None = None) -> None:
    """Give a waiting job another priority, or the place in front of another waiting job. Raises StudioError."""
    job = _job(session, job_id)
    moved = [job] if job.kind != SWEEP else [child for child in children(session, job) if child.status in WAITING]
    if job.status not in WAITING and not (job.kind == SWEEP and moved):
        raise StudioError(f"Job {job.name} does not wait: it is {job.status.lower()}.", "Only a job that waits can be moved.")
    if before is not None:
        _place_before(session, moved, _job(session, before))
        return
    if priority is None:
        raise StudioError("Neither a priority nor a place is given.", "Name a priority, or the job before which this one shall run.")
    _changed(session, update(JobRow).where(JobRow.id.in_([job_id, *(one.id for one in moved)])).values(priority=priority))


def _place_before(session: Session, moved: Sequence[JobRow], other: JobRow) -> None:
    """Take the other's priority, and number anew the ranks of all that wait with it: they stay times of their own."""
    first = next((child for child in children(session, other) if child.status in WAITING), other) if other.kind == SWEEP else other
    if first.status not in WAITING or first.queue != moved[0].queue:
        raise StudioError(f"Job {other.name} does not wait in the same queue.", "Name a job that waits.")
    ids = {one.id for one in moved}
    if first.id in ids:
        return
    same = (JobRow.status.in_(WAITING), JobRow.queue == first.queue, JobRow.priority == first.priority)
    rest = [waiting for waiting in session.scalars(select(JobRow).where(*same).order_by(*IN_ORDER)) if waiting.id not in ids]
    place = next(index for index, waiting in enumerate(rest) if waiting.id == first.id)
    order = [*rest[:place], *moved, *rest[place:]]
    least = -math.inf
    for waiting, rank in zip(order, sorted(one.rank for one in order), strict=True):
        least = max(rank, math.nextafter(least, math.inf))
        _changed(session, update(JobRow).where(JobRow.id == waiting.id).values(rank=least, priority=first.priority))


def pause_queue(session: Session, queue: str) -> None:
    """Start nothing more from this queue, until resumed; what runs goes on."""
    if session.get(QueueState, queue) is None:
        session.add(QueueState(name=queue, paused_at=time.time()))


def resume_queue(session: Session, queue: str) -> None:
    if (state := session.get(QueueState, queue)) is not None:
        session.delete(state)


def queue_is_paused(session: Session, queue: str) -> bool:
    return session.get(QueueState, queue) is not None


def children(session: Session, job: JobRow) -> list[JobRow]:
    """The jobs of a sweep in the order of its grid."""
    return list(session.scalars(select(JobRow).where(JobRow.parent_id == job.id).order_by(JobRow.created_at, JobRow.rank)))


def has_unreachable(session: Session) -> bool:
    """Whether a job waits for one that will never succeed."""
    return bool(_unreachable(session))


def _unreachable(session: Session) -> list[tuple[JobRow, JobRow]]:
    before = aliased(JobRow)
    query = select(JobRow, before).join(before, JobRow.after_id == before.id)
    rows = session.execute(query.where(JobRow.status == "QUEUED", before.status.in_(("FAILED", "CANCELLED"))))
    return [(job, awaited) for job, awaited in rows]


def cancel_unreachable(session: Session) -> None:
    """Cancel jobs that wait for one that will never succeed."""
    for job, awaited in _unreachable(session):
        cancel(session, job.id)
        reason = f"It was to run after {awaited.name}, which ended {awaited.status.lower()}."
        fix = "Start it again without waiting for a job, or after another one."
        _changed(session, update(JobRow).where(JobRow.id == job.id).values(reason=reason, fix=fix))


def running(session: Session) -> list[JobRow]:
    """Claimed jobs; a sweep runs without being claimed."""
    return list(session.scalars(select(JobRow).where(JobRow.status == "RUNNING", JobRow.kind != SWEEP)))


def to_keep(session: Session) -> list[JobRow]:
    """Jobs that were cancelled while they waited, and whose last checkpoint shall become an adapter."""
    return list(session.scalars(select(JobRow).where(JobRow.status == "CANCELLED", JobRow.cancel == "keep")))


def kept(session: Session, job_id: str) -> None:
    _changed(session, update(JobRow).where(JobRow.id == job_id, JobRow.status == "CANCELLED").values(cancel=None))


def note(session: Session, job_id: str, attempt: int, kind: str, data: dict[str, Any] | None = None) -> None:
    """Keep one event for people."""
    session.add(JobEventRow(job_id=job_id, attempt=attempt, kind=kind, data=data or {}))


def put_metric(session: Session, held: Claim, kind: str, step: int, event: dict[str, Any]) -> None:
    """One point of the curve; a step replayed by a later attempt replaces the earlier one."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert
    row = insert(MetricRow).values(job_id=held.job_id, kind=kind, step=step, attempt=held.attempt, values=_plain(event))
    session.execute(
        row.on_conflict_do_update(
            index_elements=["job_id", "kind", "step"],
            set_={"attempt": row.excluded.attempt, "values": row.excluded["values"]},
            where=MetricRow.attempt <= row.excluded.attempt,
        )
    )


_FREE: dict[str, Any] = {"owner": None, "slot": None, "lease_until": None, "pid": None, "pid_born": None, "cancel": None}


IN_ORDER = (JobRow.priority.desc(), JobRow.rank, JobRow.created_at, JobRow.id)


def _job(session: Session, job_id: str) -> JobRow:
    job = session.get(JobRow, job_id, populate_existing=True)
    if job is None:
        raise NotFoundError(f"There is no job {job_id!r}.", "`studio jobs list` shows them.")
    return job


def _status(session: Session, job_id: str) -> str:
    return session.scalar(select(JobRow.status).where(JobRow.id == job_id)) or ""


def _to_children(session: Session, sweep: JobRow, act: Callable[[str], object]) -> str:
    """Do it to every child that it can be done to; the sweep's status afterwards. Raises StudioError when there is none."""
    refused: list[StudioError] = []
    members = children(session, sweep)
    for child in members:
        try:
            act(child.id)
        except StudioError as exc:
            refused.append(exc)
    if len(refused) == len(members):
        raise refused[0] if refused else StudioError(f"Sweep {sweep.name} has no jobs.")
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
    values: dict[str, Any] = {"status": status, "step": sum(counts[s] for s in ENDED), "max_steps": total, "updated_at": now}
    if status == "RUNNING":
        values["started_at"] = func.coalesce(JobRow.started_at, now)
    values["ended_at"] = now if status in ENDED else None
    bad = [f"{counts[s]} {s.lower()}" for s in ("FAILED", "CANCELLED") if counts[s]]
    values["reason"] = f"Of {total} runs {' and '.join(bad)}." if bad and status in ENDED else ""
    values["fix"] = "Look at those; `studio jobs retry` on the sweep runs them again." if values["reason"] else ""
    _changed(session, update(JobRow).where(JobRow.id == sweep_id, JobRow.kind == SWEEP).values(**values))


def _sum_of(counts: Counter[str]) -> str:
    """RUNNING as soon as one has begun and not all have ended; at the end the worst."""
    if counts["RUNNING"] or (counts["QUEUED"] and any(counts[status] for status in ENDED)):
        return "RUNNING"
    order = ("QUEUED", "PAUSED", "FAILED", "CANCELLED", "SUCCEEDED")
    return next((status for status in order if counts[status]), "QUEUED")


def _is_open(job: type[JobRow] = JobRow) -> ColumnElement[bool]:
    return ~exists().where(QueueState.name == job.queue)


def _is_due(job: type[JobRow] = JobRow) -> ColumnElement[bool]:
    now = time.time()
    # a time further away than any back-off was written by a clock that has been set back since
    return or_(job.not_before <= now, job.not_before > now + BACKOFF_MAX_S)


def _is_released(job: type[JobRow] = JobRow) -> ColumnElement[bool]:
    before = aliased(JobRow)
    return or_(job.after_id.is_(None), exists().where(before.id == job.after_id, before.status == "SUCCEEDED"))


def _gives_way_to_nobody() -> ColumnElement[bool]:
    """A report that nobody asked for waits for the device, and also for whoever is about to take it: it would be interrupted at once."""
    holder, coming = aliased(JobRow), aliased(JobRow)
    is_busy = exists().where(holder.slot.is_not(None), holder.status == "RUNNING")
    may_start = (_is_due(coming), _is_released(coming), _is_open(coming))
    is_wanted = exists().where(coming.queue == "gpu", coming.status == "QUEUED", *may_start)
    return or_(JobRow.kind != REPORT, JobRow.priority >= 0, ~or_(is_busy, is_wanted))


def _changed(session: Session, statement: Any) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount


def _write(session: Session, held: Claim, **values: Any) -> None:
    fence = (JobRow.id == held.job_id, JobRow.owner == held.owner, JobRow.attempt == held.attempt, JobRow.status == "RUNNING")
    if _changed(session, update(JobRow).where(*fence).values(**values)) != 1:
        raise LostClaimError(f"job {held.job_id}, attempt {held.attempt}")


def _held_job(session: Session, held: Claim) -> JobRow:
    job = session.get(JobRow, held.job_id, populate_existing=True)
    if job is None or (job.owner, job.attempt, job.status) != (held.owner, held.attempt, "RUNNING"):
        raise LostClaimError(f"job {held.job_id}, attempt {held.attempt}")
    return job


def _as_wished(session: Session, held: Claim, wish: str) -> str:
    """The attempt is over, and a person had asked for that: set the job aside or end it. The new status."""
    if wish == "pause":
        _back_to_queue(session, held, status="PAUSED", not_before=0.0)
        note(session, held.job_id, held.attempt, "paused")
        return "PAUSED"
    finish(session, held, "CANCELLED")
    return "CANCELLED"


def _back_to_queue(session: Session, held: Claim, status: str = "QUEUED", **values: Any) -> None:
    _write(session, held, status=status, eta_s=None, updated_at=time.time(), **_FREE, **values)
    _follow_parent(session, held.job_id)


def _new_checkpoint(session: Session, held: Claim, step: int) -> None:
    # only a checkpoint further than any before shows that the job gets on
    newer = update(JobRow).where(
        JobRow.id == held.job_id, JobRow.owner == held.owner, JobRow.attempt == held.attempt, JobRow.checkpoint_step < step
    )
    _changed(session, newer.values(checkpoint_step=step, lost=0))


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("type", "step", "max_steps")}
