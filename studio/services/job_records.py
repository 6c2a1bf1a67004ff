"""Rows of jobs as the records that people see, and the keys by which they are ordered and found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from studio.db import job_rows
from studio.db.models import AdapterRow, JobEventRow, JobRow, MetricRow
from studio.records import (
    ENDED,
    PENDING,
    CancelRequest,
    Job,
    JobDetail,
    JobEvent,
    JobKind,
    JobStatus,
    MetricPoint,
    SweepChild,
)
from studio.services import curves, reports
from studio.services.forecast import Span, forecast
from studio.services.job_options import flat
from studio.services.work_time import seconds_of_work

UNKNOWN = Span()


def record(job: JobRow, adapter: str | None, span: Span | None = None, worked_s: float | None = None) -> Job:
    """`adapter`: the ID of the one that the job has made; `span`: its forecast; `worked_s`: how long it has worked."""
    return Job.model_validate(_fields(job, adapter, span or UNKNOWN, worked_s))


def detail(session: Session, job: JobRow) -> JobDetail:
    """One job with its configuration and what happened to it; a sweep with its children."""
    adapter = session.scalar(select(AdapterRow.id).where(AdapterRow.job_id == job.id))
    events = session.scalars(select(JobEventRow).where(JobEventRow.job_id == job.id).order_by(JobEventRow.id))
    spans: Mapping[str, Span] = {}
    if job.status in PENDING:
        spans = forecast(session)
    more: dict[str, object] = {"watched": None, "report": None, "children": None}
    if job.kind == JobKind.TRAIN:
        report = reports.newest(session, job.id)
        more |= {"watched": curves.watched(session, job.id), "report": report and reports.record(report)}
    elif job.kind == JobKind.SWEEP:
        more["children"] = _children(session, job)
    return JobDetail.model_validate({
        **_fields(job, adapter, spans.get(job.id, UNKNOWN), seconds_of_work(session, [job])[job.id]),
        "config": job.config,
        "result": job.result,
        "events": [JobEvent.model_validate({"at": one.at, "attempt": one.attempt, "kind": one.kind, **one.data}) for one in events],
        **more,
    })  # fmt: skip


def _fields(job: JobRow, adapter: str | None, span: Span, worked_s: float | None) -> dict[str, object]:
    ends_at = None
    if span.ends_in_s is not None:
        ends_at = time.time() + span.ends_in_s
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "attempt": job.attempt,
        "progress": {"step": job.step, "max_steps": job.max_steps, "eta_s": job.eta_s},  # checked with the rest, at once
        "reason": job.reason,
        "fix": job.fix,
        "cause": job.cause,
        "remedy": job.remedy,
        "run_dir": job.run_dir,
        "adapter": adapter,
        "base_model": job.base_model,
        "recipe": job.recipe,
        "data": job.dataset_id,
        "parent": job.parent_id,
        "after": job.after_id,
        "priority": job.priority,
        "tags": job.tags,
        "notes": job.notes,
        "stopping": job.cancel and CancelRequest(job.cancel),
        "starts_in_s": span.starts_in_s,
        "ends_at": ends_at,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "seconds_of_work": worked_s,
    }


def _children(session: Session, sweep: JobRow) -> list[SweepChild]:
    """Each with the values of the grid that are its own."""
    keys = list(sweep.config["grid"])
    children = job_rows.children(session, sweep)
    worked = seconds_of_work(session, children)
    return [_child(child, keys, worked[child.id]) for child in children]


def _child(job: JobRow, keys: Sequence[str], worked_s: float | None) -> SweepChild:
    options = flat(job.config)
    own = {key: options.get(key) for key in keys}
    return SweepChild.model_validate({**_fields(job, None, UNKNOWN, worked_s), "options": own, "result": job.result})


def first_ones() -> Sequence[Any]:
    """The order of lists: what runs first, then what waits in the order it will start, then what has ended, newest first."""
    runs, has_ended = JobRow.status == JobStatus.RUNNING, JobRow.status.in_(ENDED)
    return (
        case((runs, 0), (has_ended, 2), else_=1),
        case((runs, JobRow.started_at), (has_ended, -func.coalesce(JobRow.ended_at, JobRow.created_at)), else_=-JobRow.priority),
        case((runs | has_ended, 0.0), else_=JobRow.rank),
        JobRow.id,
    )


def is_found(job: JobRow, data: str | None, words: Sequence[str]) -> bool:
    """Whether all words, casefolded, occur in what people know of a job; `data`: the name of its dataset."""
    if not words:
        return True
    fields = (job.name, job.id, job.kind, job.status, job.base_model, data or "", job.recipe, *job.tags, job.notes, job.reason)
    text = "\n".join(str(field) for field in fields).casefold()
    return all(word in text for word in words)


def points(metrics: Sequence[MetricRow]) -> list[MetricPoint]:
    """One point per step, of measures in order of step and kind, each under a name of its own: evaluation adds `eval_`.

    Training sorts last, so its loss and its time are the point's own. A step at which nothing was learned or evaluated is left out.
    """
    found: dict[int, MetricPoint] = {}
    for metric in metrics:
        found.setdefault(metric.step, {"step": metric.step}).update(_named(metric))
    return [found[step] for step in sorted(found) if "loss" in found[step] or "eval_loss" in found[step]]


def _named(metric: MetricRow) -> MetricPoint:
    if metric.kind == "eval":
        return {f"eval_{key}": value for key, value in metric.values.items() if key != "seconds"}
    return {key: value for key, value in metric.values.items() if metric.kind == "train" or key != "at"}
