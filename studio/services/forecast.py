"""When waiting jobs will start and end, from the measured pace of similar runs. Where nothing similar has run: unknown.

Reads rows only. Figures are seconds from now.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.catalogue import hardware
from studio.db import job_rows, queue_order
from studio.db.models import JobRow
from studio.records import JobKind, JobStatus, QueueName
from studio.services.job_options import flat

LOOKED_BACK = 100  # finished trainings that are looked at
LIKE = 5  # of those similar to the job, the latest so many count
# what the time of a step depends on most, as dotted options
SIMILAR = (
    "base_model", "objective", "method", "device", "max_length", "packing", "per_device_train_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "quantization.load_in_4bit",
)  # fmt: skip


@dataclass(frozen=True)
class Pace:
    """Of one run: seconds per step, and seconds around the steps (imports, loading, writing)."""

    key: tuple[str, ...]
    dataset: str | None
    step_s: float
    around_s: float


@dataclass(frozen=True)
class Span:
    """`starts_in_s` and `ends_in_s`, each None where unknown."""

    starts_in_s: float | None = None
    ends_in_s: float | None = None


def forecast(session: Session, places: int | None = None) -> dict[str, Span]:
    """ID -> Span of every running and every queued training. `places`: jobs that compute at once; None takes the GPUs that are here."""
    if places is None:
        places = max(1, sum(device.kind == "cuda" for device in hardware.usable()))
    now = time.time()
    running = job_rows.running(session)
    query = select(JobRow).where(JobRow.status == JobStatus.QUEUED, JobRow.queue == QueueName.GPU, JobRow.kind != JobKind.SWEEP)
    queued = list(session.scalars(query.order_by(*queue_order.IN_ORDER)))
    paces: list[Pace] = []
    if queued or any(job.eta_s is None for job in running):
        paces = _paces(session)
    spans = {job.id: Span(None, _left(job, paces, now)) for job in running}
    free = _places_are_free_in([spans[job.id].ends_in_s for job in running if job.queue == QueueName.GPU], places)
    if queue_order.queue_is_paused(session, QueueName.GPU):
        free = [None]
    awaited = [job.after_id for job in queued if job.after_id]
    done = set(session.scalars(select(JobRow.id).where(JobRow.id.in_(awaited), JobRow.status == JobStatus.SUCCEEDED)))
    return _in_turn(queued, done, spans, free, paces)


def _places_are_free_in(ends: Sequence[float | None], places: int) -> list[float | None]:
    """When each place has no job any more, of those that run; None where the end of its job is unknown."""
    latest = sorted(ends, key=_unknown_last)[-places:]
    return [*[0.0] * (places - len(latest)), *latest]


def _unknown_last(end: float | None) -> float:
    if end is None:
        return math.inf
    return end


def _in_turn(
    queued: Sequence[JobRow], done: set[str], running: dict[str, Span], free: list[float | None], paces: Sequence[Pace]
) -> dict[str, Span]:
    """Each at the first place that is free; a job after another one waits for it, and behind an unknown time everything is unknown."""
    spans = dict(running)
    left = list(queued)
    while left:
        ready = next((job for job in left if job.after_id is None or job.after_id in done or job.after_id in spans), None)
        if ready is None:  # waits for something that is paused, or not in this queue
            return spans | {job.id: Span() for job in left}
        left.remove(ready)
        place = min(range(len(free)), key=lambda index: _unknown_last(free[index]))
        waits = [free[place], *[spans[one].ends_in_s for one in [ready.after_id] if one in spans]]
        begins = max(waits, key=_unknown_last)
        takes, ends = duration(ready, paces), None
        if begins is not None and takes is not None:
            ends = begins + takes
        spans[ready.id] = Span(begins, ends)
        free[place] = ends
    return spans


def duration(job: JobRow, paces: Sequence[Pace]) -> float | None:
    """Seconds that a waiting training will take from where it stands; None while nothing like it has run."""
    steps = job.max_steps or job.planned_steps
    pace = _pace_of(job, paces)
    if steps is None or pace is None:
        return None
    return pace.around_s + pace.step_s * max(steps - job.checkpoint_step, 0)


def _left(job: JobRow, paces: Sequence[Pace], now: float) -> float | None:
    if job.eta_s is not None:
        return max(job.eta_s - max(now - job.updated_at, 0.0), 0.0)
    if job.kind != JobKind.TRAIN:
        return None
    takes = duration(job, paces)
    if takes is None or job.attempt > 1:
        return takes
    return max(takes - (now - (job.started_at or now)), 0.0)


def _pace_of(job: JobRow, paces: Sequence[Pace]) -> Pace | None:
    like = [pace for pace in paces if pace.key == _key(job.config)]
    found = ([pace for pace in like if pace.dataset == job.dataset_id] or like)[:LIKE]
    if not found:
        return None
    step_s = statistics.median(pace.step_s for pace in found)
    around_s = statistics.median(pace.around_s for pace in found)
    return Pace(found[0].key, job.dataset_id, step_s, around_s)


def _paces(session: Session) -> list[Pace]:
    """Latest first. What is running counts too, once it knows its own pace."""
    trainings = select(JobRow).where(JobRow.kind == JobKind.TRAIN)
    running = session.scalars(trainings.where(JobRow.status == JobStatus.RUNNING, JobRow.eta_s.is_not(None)))
    succeeded = trainings.where(JobRow.status == JobStatus.SUCCEEDED).order_by(JobRow.ended_at.desc()).limit(LOOKED_BACK)
    return [pace for job in (*running, *session.scalars(succeeded)) if (pace := _measured(job)) is not None]


def _measured(job: JobRow) -> Pace | None:
    if job.status == JobStatus.RUNNING:
        if not job.step or not job.max_steps or job.step >= job.max_steps or not job.eta_s:
            return None
        step_s = job.eta_s / (job.max_steps - job.step)
        spent = job.updated_at - (job.started_at or job.updated_at)
        return _pace(job, step_s, spent - job.step * step_s)
    steps, seconds = job.result.get("steps"), job.result.get("seconds")
    if not steps or not seconds:
        return None
    took = (job.ended_at or 0.0) - (job.started_at or 0.0)
    return _pace(job, seconds / steps, took - seconds)


def _pace(job: JobRow, step_s: float, around_s: float) -> Pace:
    if job.attempt > 1:  # of a run that was interrupted it is not known how long it did not run
        around_s = 0.0
    return Pace(_key(job.config), job.dataset_id, step_s, max(around_s, 0.0))


def _key(config: Mapping[str, JsonValue]) -> tuple[str, ...]:
    options = flat(config)
    return tuple(str(options.get(name)) for name in SIMILAR)
