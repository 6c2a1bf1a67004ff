"""What was observed of a training, thinned to what a chart can show: points by kind, sample answers, drift, best and worst rows.

Steps are read first and only the chosen points behind them, so a long run costs what a short one does. Queues and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.trainers import drift
from studio.db.models import MetricRow
from studio.records import Curves, DriftReading, KnownRows, MetricPoint, Samples, WatchedTraining

MAX_POINTS = 400  # of a curve, whatever the length of the run
MAX_LOOKS = 20  # sets of sample answers
CURVES = ("train", "eval", "machine", "drift")


def curves(session: Session, job_id: str, most: int = MAX_POINTS) -> Curves:
    """Points by kind; first and last are kept."""
    return Curves(**{kind: thinned(session, job_id, kind, most) for kind in CURVES})


def thinned(session: Session, job_id: str, kind: str, most: int) -> list[MetricPoint]:
    """At most `most` points of one kind in order of step, evenly chosen."""
    mine = (MetricRow.job_id == job_id, MetricRow.kind == kind)
    steps = session.scalars(select(MetricRow.step).where(*mine).order_by(MetricRow.step)).all()
    query = select(MetricRow.step, MetricRow.values).where(*mine).order_by(MetricRow.step)
    if len(steps) > most:
        query = query.where(MetricRow.step.in_(_spread(steps, most)))
    return [{"step": step, **values} for step, values in session.execute(query)]


def _spread(steps: Sequence[int], most: int) -> list[int]:
    return sorted({steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)})


def watched(session: Session, job_id: str) -> WatchedTraining:
    """Sample answers, the latest drift, and the held-out rows that it knows best and least."""
    rows = _last(session, job_id, "rows")
    known = KnownRows.model_validate(rows) if rows else None
    return WatchedTraining(samples=_samples(session, job_id), drift=_drift(session, job_id), rows=known)


def _samples(session: Session, job_id: str) -> Samples | None:
    """The first look holds the rows and what the base says to them."""
    looks = thinned(session, job_id, "samples", MAX_LOOKS + 1)
    first = next((look for look in looks if "rows" in look), None)
    if first is None:
        return None
    later = [{"step": look["step"], "answers": look["answers"]} for look in looks if look is not first]
    return Samples.model_validate({"rows": first["rows"], "base": first["answers"], "looks": later})


def _drift(session: Session, job_id: str) -> DriftReading | None:
    latest = _last(session, job_id, "drift") or {}
    value, step = latest.get("drift"), latest.get("step")
    if not isinstance(value, (int, float)) or not isinstance(step, int):
        return None
    ratio = round(math.exp(min(value, 50.0)), 3)
    return DriftReading(step=step, drift=value, ratio=ratio, advice=drift.advice(value))


def _last(session: Session, job_id: str, kind: str) -> MetricPoint | None:
    query = select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.kind == kind).order_by(MetricRow.step.desc()).limit(1)
    metric = session.scalar(query)
    if metric is None:
        return None
    return {"step": metric.step, **{key: value for key, value in metric.values.items() if key != "at"}}
