"""What a trainer reports while it runs: metrics become points of curves, notices events for people.

Moves no job: studio.db.lifecycle decides whose reports count and writes the progress on the job's row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from studio.db import job_rows
from studio.db.models import MetricRow

BY_STEP = ("eval", "machine", "drift", "samples", "rows")  # events that are kept by their step, as training points are
FOR_PEOPLE = ("start", "notice", "resumed")


@dataclass
class Reported:
    """What the events say of the job itself: values of its row, and the furthest checkpoint."""

    values: dict[str, Any] = field(default_factory=dict)
    checkpoint_step: int | None = None


def keep(session: Session, job_id: str, attempt: int, events: Iterable[Mapping[str, Any]]) -> Reported:
    """Keep metrics and notices of one attempt; strange events are skipped."""
    reported = Reported()
    for event in events:
        kind, step = event.get("type"), event.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            step = None
        if kind in ("progress", "start"):
            reported.values = {"step": step, "max_steps": event.get("max_steps"), "eta_s": event.get("eta_s")}
        if kind in FOR_PEOPLE:
            job_rows.note(session, job_id, attempt, str(kind), _plain(event))
        elif step is None:
            continue
        elif kind == "progress" and "loss" in event:
            put_metric(session, job_id, attempt, "train", step, event)
        elif kind in BY_STEP:
            put_metric(session, job_id, attempt, str(kind), step, event)
        elif kind == "checkpoint":
            reported.checkpoint_step = max(step, reported.checkpoint_step or 0)
    return reported


def put_metric(session: Session, job_id: str, attempt: int, kind: str, step: int, event: Mapping[str, Any]) -> None:
    """One point of the curve; a step replayed by a later attempt replaces the earlier one."""
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    insert = (postgresql if is_postgresql else sqlite).insert
    row = insert(MetricRow).values(job_id=job_id, kind=kind, step=step, attempt=attempt, values=_plain(event))
    session.execute(
        row.on_conflict_do_update(
            index_elements=["job_id", "kind", "step"],
            set_={"attempt": row.excluded.attempt, "values": row.excluded["values"]},
            where=MetricRow.attempt <= row.excluded.attempt,
        )
    )


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("type", "step", "max_steps")}
