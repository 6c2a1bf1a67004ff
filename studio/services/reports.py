"""The report that follows a training: its base against its adapter on held-out rows."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import follow_up, queue
from studio.db import queue_order
from studio.db.models import AdapterRow, JobRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.records import JobKind, JobProgress, JobStatus, QueueName, Report
from studio.services import job_names
from studio.settings import Settings

ROWS = 40  # where the training named none
FOUND = ("judgement", "base", "adapter", "rows", "held_out", "metrics", "judge", "counts", "wins", "losses")  # of a job's result


class ReportService:
    """What a person can do with reports."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db

    def show(self, training: str) -> Report:
        """The newest report of a training. Raises NotFoundError where it has none."""
        found = self.latest(training)
        if found is None:
            raise NotFoundError(f"{training} has no report.", f"`studio jobs report {training}` makes one once it has succeeded.")
        return found

    def latest(self, training: str) -> Report | None:
        """As `show`, None where there is no report."""
        with self.db.read() as session:
            found = newest(session, _training(session, training).id)
        return record(found) if found else None

    def make(self, training: str, rows: int | None = None) -> Report:
        """Queue a report, also beside one that is there; what a person asks for waits for no training. Raises StudioError."""
        with self.db.write() as session:
            job = _training(session, training)
            adapter = session.scalar(select(AdapterRow).where(AdapterRow.job_id == job.id))
            if adapter is None:
                raise StudioError(
                    f"{job.name} has no adapter to report on.", "Only a training that has made one can be held against its base."
                )
            wanted = rows or int(job.config.get("report_rows") or ROWS)
            made = follow_up.queue_report(session, job, adapter, wanted)
        queue.notify(self.settings.queue_path, QueueName.LIGHT)
        return record(made)

    def hurry(self, training: str) -> Report:
        """A person waits for the report: it no longer gives way to trainings."""
        with self.db.write() as session:
            found = newest(session, _training(session, training).id)
            if found is not None and found.status == JobStatus.QUEUED:
                queue_order.move(session, found.id, priority=0)
        return self.show(training)


def newest(session: Session, training_id: str) -> JobRow | None:
    """The latest report of a training."""
    mine = select(JobRow).where(JobRow.kind == JobKind.REPORT, JobRow.after_id == training_id)
    return session.scalar(mine.order_by(JobRow.created_at.desc()).limit(1))


def record(job: JobRow) -> Report:
    """Where a report stands, with what it has found once it has succeeded."""
    found = {key: value for key, value in job.result.items() if key in FOUND}
    return Report.model_validate({
        "job": job.id,
        "training": job.after_id,
        "comparison": job.config["comparison"],
        "status": job.status,
        "reason": job.reason,
        "fix": job.fix,
        "progress": JobProgress(step=job.step, max_steps=job.max_steps, eta_s=job.eta_s),
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        **found,
    })  # fmt: skip


def _training(session: Session, name: str) -> JobRow:
    job = job_names.find(session, name)
    if job.kind != JobKind.TRAIN:
        raise StudioError(f"{job.name} is no training.", "Name a training.")
    return job
