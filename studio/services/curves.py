"""What was observed of a training, thinned to what a chart can show: points by kind, sample answers, drift, best and worst rows.

Steps are read first and only the chosen points behind them, so a long run costs what a short one does. Queues and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.trainers import drift
from studio.db.models import MetricRow

MAX_POINTS = 400  # of a curve, whatever the length of the run
MAX_LOOKS = 20  # sets of sample answers
CURVES = ("train", "eval", "machine", "drift")
Row = dict[str, Any]


def curves(session: Session, job_id: str, most: int = MAX_POINTS) -> dict[str, list[Row]]:
    """Points by kind, train and eval always among them; first and last are kept."""
    found = {"train": list[Row](), "eval": list[Row]()}
    for kind in CURVES:
        if rows := thinned(session, job_id, kind, most):
            found[kind] = rows
    return found


def thinned(session: Session, job_id: str, kind: str, most: int) -> list[Row]:
    """At most `most` points of one kind in order of step, evenly chosen."""
    mine = (MetricRow.job_id == job_id, MetricRow.kind == kind)
    steps = session.scalars(select(MetricRow.step).where(*mine).order_by(MetricRow.step)).all()
    query = select(MetricRow.step, MetricRow.values).where(*mine).order_by(MetricRow.step)
    if len(steps) > most:
        query = query.where(MetricRow.step.in_(_spread(steps, most)))
    return [{"step": step, **values} for step, values in session.execute(query)]


def _spread(steps: Sequence[int], most: int) -> list[int]:
    return sorted({steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)})


def watched(session: Session, job_id: str) -> Row:
    """{"samples": {"rows", "base", "looks": [{"step", "answers"}]}, "drift": {"step", "drift", "ratio", "advice"}, "rows": {…}}.

    Each is None where the training has not said it.
    """
    looks = thinned(session, job_id, "samples", MAX_LOOKS + 1)
    first = next((look for look in looks if "rows" in look), None)
    samples = None
    if first is not None:
        answered = [{"step": look["step"], "answers": look["answers"]} for look in looks if look is not first]
        samples = {"rows": first["rows"], "base": first["answers"], "looks": answered}
    return {"samples": samples, "drift": _drift(session, job_id), "rows": _last(session, job_id, "rows")}


def _drift(session: Session, job_id: str) -> Row | None:
    latest = _last(session, job_id, "drift")
    if latest is None or latest.get("drift") is None:
        return None
    value = float(latest["drift"])
    return {"step": latest["step"], "drift": value, "ratio": round(math.exp(min(value, 50.0)), 3), "advice": drift.advice(value)}


def _last(session: Session, job_id: str, kind: str) -> Row | None:
    query = select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.kind == kind).order_by(MetricRow.step.desc()).limit(1)
    metric = session.scalar(query)
    return {"step": metric.step, **{key: value for key, value in metric.values.items() if key != "at"}} if metric else None
