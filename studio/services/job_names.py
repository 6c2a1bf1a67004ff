"""Names of jobs. An adapter takes its job's name, so jobs and adapters share one name space."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from studio.db import lifecycle
from studio.db.models import AdapterRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.services import naming


def find(session: Session, wanted: str) -> JobRow:
    """The job with this ID or name. Raises NotFoundError."""
    return naming.look_up(session, JobRow, wanted, "job")


def free_name(db: Database, wanted: str | None, fallback: Callable[[], str]) -> str:
    """`wanted`, which must be valid and free; left out, a free name made of `fallback`. Raises StudioError."""
    with db.read() as session:
        is_taken = naming.taken_in(session, JobRow.name, AdapterRow.name)
        if wanted:
            return naming.claim(wanted, is_taken)
        try:
            stem = fallback()
        except StudioError:  # the check of the data itself reports this one
            stem = "job"
        return naming.unique(naming.from_stem(stem), is_taken)


def submit(session: Session, job: JobRow, title: str, *, is_given: bool) -> None:
    """Name the job and queue it; its name may have been taken since `free_name`. A given name is then refused with TakenError."""
    is_taken = naming.taken_in(session, JobRow.name, AdapterRow.name)
    settle = naming.claim if is_given else naming.unique
    job.name = settle(title, is_taken)
    lifecycle.submit(session, job)
