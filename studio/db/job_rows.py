"""Reading and noting what belongs to jobs, without moving them: look-up, children, events for people.

All functions join the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import CursorResult, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import UpdateBase

from studio.db.models import JobEventRow, JobRow
from studio.errors import NotFoundError
from studio.records import JobKind, JobStatus


def get(session: Session, job_id: str) -> JobRow:
    """The job as it is in the database now. Raises NotFoundError."""
    job = session.get(JobRow, job_id, populate_existing=True)
    if job is None:
        raise NotFoundError(f"There is no job {job_id!r}.", "`studio jobs list` shows them.")
    return job


def children(session: Session, job: JobRow) -> list[JobRow]:
    """The jobs of a sweep in the order of its grid."""
    return list(session.scalars(select(JobRow).where(JobRow.parent_id == job.id).order_by(JobRow.created_at, JobRow.rank)))


def running(session: Session) -> list[JobRow]:
    """Claimed jobs; a sweep runs without being claimed."""
    return list(session.scalars(select(JobRow).where(JobRow.status == JobStatus.RUNNING, JobRow.kind != JobKind.SWEEP)))


def note(session: Session, job_id: str, attempt: int, kind: str, data: Mapping[str, Any] | None = None) -> None:
    """Keep one event for people."""
    session.add(JobEventRow(job_id=job_id, attempt=attempt, kind=kind, data=dict(data or {})))


def changed(session: Session, statement: UpdateBase) -> int:
    """Run an UPDATE; the number of rows that it has changed."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount
