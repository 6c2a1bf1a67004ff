"""Jobs: submit, sweep, clone; pause, resume, retry, move, cancel; list, watch, compare.

Reads and writes rows and run directories; starts no process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import executor, kinds, queue
from jobs.config import JobConfig
from jobs.rundir import RunDir
from studio.catalogue.models import ModelRef
from studio.db import job_rows, lifecycle, queue_order
from studio.db.models import AdapterRow, DatasetRow, JobRow, MetricRow, new_id
from studio.db.session import Database
from studio.errors import StudioError
from studio.records import (
    ENDED,
    PENDING,
    Curves,
    Job,
    JobComparison,
    JobDetail,
    JobKind,
    JobScript,
    JobStatus,
    MetricPoint,
    QueueName,
    QueueOverview,
)
from studio.services import curves, job_names, job_options, job_records
from studio.services.cloning import Cloner
from studio.services.datasets import DatasetService
from studio.services.forecast import Span, forecast
from studio.services.judged import judged
from studio.services.launching import Launcher, LaunchProblems, combinations
from studio.services.models import ModelService
from studio.services.paging import ALL, Listed, Page
from studio.services.scripts import ScriptWriter
from studio.services.work_time import seconds_of_work
from studio.settings import Settings

MAX_TAGS, MAX_TAG_LENGTH, MAX_NOTE_LENGTH, MAX_COMPARED = 20, 40, 10_000, 20
PAUSABLE = QueueName.GPU  # the queue that a person pauses: comparisons only ask the engine and go on

Jobs = list[Job]  # inside the class, `list` is a use case
Points = list[MetricPoint]


class JobService:
    """What a person can do with jobs."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.datasets = datasets
        self.models = models
        self.launcher = Launcher(settings, db, datasets, models)
        self.cloner = Cloner(settings, db, self.launcher)

    # launching

    def submit(
        self,
        *,
        data: str,
        base_model: str,
        recipe: str | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        after: str | None = None,
        fit_memory: bool = False,
    ) -> JobDetail:
        """Queue a training job; returns it. `options` are JobConfig's dotted keys.

        `fit_memory`: take the fastest plan that fits the memory that there is, where the options do not fit as they are.

        Raises StudioError with every reason at once when the launch can't work; then nothing is queued and no file stays.
        """
        self.models.refuse_file((options or {}).get("chat_template"))
        problems = LaunchProblems()
        awaited = problems.gather(lambda: self.show(after).id) if after else None
        title = problems.gather(lambda: job_names.free_name(self.db, name, lambda: self.datasets.show(data).name))
        plans = self.launcher.plan(problems, data, base_model, recipe, [options or {}], fit_memory=fit_memory)
        problems.raise_all()
        assert title is not None
        with self.launcher.jobs(plans) as (job,):
            job.after_id = awaited
            with self.db.write() as session:
                job_names.submit(session, job, title, is_given=bool(name))
                plans[0].note(session, job)
        queue.notify(self.settings.queue_path, QueueName.GPU)
        return self.show(job.id)

    def sweep(
        self,
        *,
        data: str,
        base_model: str,
        grid: Mapping[str, Sequence[Any]],
        recipe: str | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        after: str | None = None,
        fit_memory: bool = False,
    ) -> JobDetail:
        """Queue one training per combination of the grid's values (at most 64), and the job that stands for them all; returns that.

        `grid`: dotted key -> list of values. Raises StudioError with every reason; then nothing is queued.
        """
        for template in ((options or {}).get("chat_template"), *grid.get("chat_template", ())):
            self.models.refuse_file(template)
        problems = LaunchProblems()
        chosen = problems.gather(lambda: combinations(grid, options or {})) or []
        awaited = problems.gather(lambda: self.show(after).id) if after else None
        title = problems.gather(lambda: job_names.free_name(self.db, name, lambda: f"sweep-{self.datasets.show(data).name}"))
        layers = [{**(options or {}), **one} for one in chosen]
        plans = self.launcher.plan(problems, data, base_model, recipe, layers, fit_memory=fit_memory) if chosen else []
        problems.raise_all()
        assert title is not None
        first = plans[0]
        parent = JobRow(
            id=new_id(),
            kind=JobKind.SWEEP,
            queue=kinds.queue_of(JobKind.SWEEP),
            recipe=first.recipe,
            config={"grid": {key: list(values) for key, values in grid.items()}, "options": dict(options or {})},
            dataset_id=first.dataset.id,
            base_model=first.config.base_model,
        )
        with self.launcher.jobs(plans) as children, self.db.write() as session:
            job_names.submit(session, parent, title, is_given=bool(name))
            for number, child in enumerate(children, 1):
                child.parent_id, child.after_id = parent.id, awaited
                job_names.submit(session, child, f"{parent.name[:60]}-{number}", is_given=False)
                plans[number - 1].note(session, child)
        queue.notify(self.settings.queue_path, QueueName.GPU)
        return self.show(parent.id)

    def clone(self, job_id: str, *, options: Mapping[str, Any] | None = None, name: str | None = None) -> JobDetail:
        """Queue another job with this one's data and options, some of them changed. Raises StudioError as `submit` does."""
        self.models.refuse_file((options or {}).get("chat_template"))
        return self.show(self.cloner.clone(job_id, options or {}, name))

    def apply_remedy(self, job_id: str) -> JobDetail:
        """Clone a failed job with the options that would have helped; returns the new one."""
        job = self.show(job_id)
        if not job.remedy:
            raise StudioError(
                f"No change of options is known that would help {job.name}.", job.fix or "Look at its reason: `studio jobs show`."
            )
        return self.clone(job.id, options=job.remedy)

    # the queue

    def cancel(self, job_id: str, keep: bool = False) -> JobDetail:
        """Ask a job to end. With `keep`, the last verified checkpoint becomes its adapter."""
        return self._do(job_id, lambda session, job: lifecycle.cancel(session, job.id, keep=keep))

    def pause(self, job_id: str) -> JobDetail:
        """Set a waiting job aside, or ask a running one to stop at a checkpoint; it stays PAUSED until resumed."""
        return self._do(job_id, lambda session, job: lifecycle.pause(session, job.id))

    def resume(self, job_id: str) -> JobDetail:
        """Queue a paused job in its old place; it continues to the bit where it stopped."""
        return self._do(job_id, lambda session, job: lifecycle.resume(session, job.id))

    def retry(self, job_id: str) -> JobDetail:
        """Queue a failed or cancelled job once more; it continues from its last verified checkpoint."""
        return self._do(job_id, lambda session, job: lifecycle.retry(session, job.id))

    def move(self, job_id: str, priority: int | None = None, before: str | None = None) -> JobDetail:
        """Another priority for a waiting job (higher runs first), or the place in front of another one."""

        def act(session: Session, job: JobRow) -> None:
            other = before and job_names.find(session, before).id
            queue_order.move(session, job.id, priority, other)

        return self._do(job_id, act)

    def _do(self, job_id: str, act: Callable[[Session, JobRow], object]) -> JobDetail:
        with self.db.write() as session:
            job = job_names.find(session, job_id)
            act(session, job)
        queue.notify(self.settings.queue_path, job.queue or PAUSABLE)
        return self.show(job.id)

    def pause_queue(self) -> QueueOverview:
        """Start no further training until resumed, also after a restart; what runs goes on."""
        with self.db.write() as session:
            queue_order.pause_queue(session, PAUSABLE)
        return self.overview()

    def resume_queue(self) -> QueueOverview:
        """Let the queue run again."""
        with self.db.write() as session:
            queue_order.resume_queue(session, PAUSABLE)
        queue.notify(self.settings.queue_path, PAUSABLE)
        return self.overview()

    def overview(self) -> QueueOverview:
        """What runs, how many wait, whether the queue is paused, and when it will be empty. Reports do not count."""
        with self.db.read() as session:
            spans = forecast(session)
            running = [job for job in job_rows.running(session) if job.kind not in kinds.followers()]
            counted = (JobRow.status == JobStatus.QUEUED, JobRow.queue != "", JobRow.kind.not_in(kinds.followers()))
            queued = session.scalar(select(func.count()).select_from(JobRow).where(*counted)) or 0
            is_paused = queue_order.queue_is_paused(session, PAUSABLE)
            worked = seconds_of_work(session, running)
        running.sort(key=lambda job: job.started_at or 0.0)
        return QueueOverview(
            running=[job_records.record(job, None, spans.get(job.id), worked[job.id]) for job in running],
            queued=queued,
            paused=is_paused,
            queue_eta_s=_last_end([*spans.values()], len(running) + queued),
        )

    # looking

    def list(self, status: str | None = None, search: str | None = None, page: Page = ALL) -> Listed[Job]:
        """What runs first, then what waits in the order it will start, then what has ended, newest first.

        `search`: words that all occur in a job's name, ID, kind, model, data, recipe, tags, notes or reason. Reports are not listed:
        each belongs to its training, which shows it.
        """
        with self.db.read() as session:
            query = select(JobRow, AdapterRow.id, DatasetRow.name).outerjoin(AdapterRow, AdapterRow.job_id == JobRow.id)
            query = query.outerjoin(DatasetRow, DatasetRow.id == JobRow.dataset_id).where(JobRow.kind.not_in(kinds.followers()))
            if status:
                query = query.where(JobRow.status == status.upper())
            words = (search or "").casefold().split()
            query = query.order_by(*job_records.first_ones())
            rows = page.read(session, query, (lambda row: job_records.is_found(row[0], row[2], words)) if words else None)
            spans: Mapping[str, Span] = {}
            if any(job.status in PENDING for job, _, _ in rows):
                spans = forecast(session)
            worked = seconds_of_work(session, [job for job, _, _ in rows])
        return rows.as_are(job_records.record(job, adapter, spans.get(job.id), worked[job.id]) for job, adapter, _ in rows)

    def show(self, job_id: str) -> JobDetail:
        """One job with its configuration and what happened to it; a sweep with its children."""
        with self.db.read() as session:
            return job_records.detail(session, job_names.find(session, job_id))

    def compare(self, job_ids: Sequence[str]) -> JobComparison:
        """Two to twenty trainings side by side; a sweep stands for its children. Raises StudioError."""
        with self.db.read() as session:
            groups = [_trainings(session, job_names.find(session, job_id)) for job_id in job_ids]
            jobs = [*{job.id: job for group in groups for job in group}.values()]
            data = {dataset: name for dataset, name in session.execute(select(DatasetRow.id, DatasetRow.name))}
            adapters = {job_id: adapter for job_id, adapter in session.execute(select(AdapterRow.job_id, AdapterRow.id))}
            verdicts = judged(session, [job.id for job in jobs])
            most = max([MAX_COMPARED, *(len(group) for group in groups[:1])])  # a sweep may be larger
            if any(job.kind != JobKind.TRAIN for job in jobs) or not 2 <= len(jobs) <= most:
                raise StudioError("Only trainings can be compared, two to twenty of them.", "Name two or more trainings, or a sweep.")
            drawn = {job.id: curves.curves(session, job.id) for job in jobs}
            worked = seconds_of_work(session, jobs)
        options = [{"data": data.get(job.dataset_id or "", ""), "recipe": job.recipe, **job_options.flat(job.config)} for job in jobs]
        return JobComparison(
            jobs=[job_records.record(job, adapters.get(job.id), None, worked[job.id]) for job in jobs],
            differences=job_options.differences(options),
            curves=drawn,
            results={job.id: job.result for job in jobs},
            judged=verdicts,
        )

    def script(self, job_id: str, to: Path | None = None) -> JobScript:
        """The training as a TRL script with the same settings. `to`: the script's file, beside which its rows are written."""
        job, writer = self._script_writer(job_id)
        if to is None:
            return JobScript(id=job.id, name=job.name, script=writer.text(job.name), files=[])
        files = writer.write(to)
        return JobScript(id=job.id, name=job.name, script=to.read_text(encoding="utf-8"), files=files)

    def script_zip(self, job_id: str, archive: Path) -> None:
        """The script and the rows that it reads, in one .zip file."""
        self._script_writer(job_id)[1].write_zip(archive)

    def _script_writer(self, job_id: str) -> tuple[JobRow, ScriptWriter]:
        with self.db.read() as session:
            job = job_names.find(session, job_id)
        if job.kind != JobKind.TRAIN:
            raise StudioError(f"{job.name} is no training.", "Name a training.")
        config = JobConfig.model_validate(job.config)
        probe = self.launcher.models.probe_for_launch(ModelRef(config.base_model, Path(config.model_name_or_path)))
        return job, ScriptWriter.of(job.name, config, RunDir(Path(job.run_dir)), probe)

    def logs(self, job_id: str, tail_lines: int = 200) -> str:
        """The end of the log of the latest attempt."""
        with self.db.read() as session:
            job = job_names.find(session, job_id)
        if not job.run_dir or not job.attempt:
            return ""
        return executor.logs(RunDir(Path(job.run_dir)).attempt(job.attempt), tail_lines)

    def metrics(self, job_id: str) -> Points:
        """Training points in order of step; evaluation adds `eval_…` to the point of its step, memory, use and drift their own keys."""
        with self.db.read() as session:
            mine = (MetricRow.job_id == job_names.find(session, job_id).id, MetricRow.kind.in_(curves.CURVES))
            found = session.scalars(select(MetricRow).where(*mine).order_by(MetricRow.step, MetricRow.kind)).all()
        return job_records.points(found)

    def curves(self, job_id: str, points: int = curves.MAX_POINTS) -> Curves:
        """The curves with at most `points` points each; first and last are kept."""
        with self.db.read() as session:
            return curves.curves(session, job_names.find(session, job_id).id, points)

    def wait(self, job_id: str, timeout: float | None = None) -> JobDetail:
        """Return the job once it has ended, or as it is when `timeout` seconds have passed."""
        begun = time.monotonic()
        while True:
            job = self.show(job_id)
            if job.status in ENDED or (timeout is not None and time.monotonic() - begun >= timeout):
                return job
            time.sleep(0.2)

    # what people write on jobs

    def tag(self, job_id: str, tags: Sequence[str], remove: Sequence[str] = ()) -> JobDetail:
        """Add tags to a job, and take others off."""
        added = [" ".join(tag.split()) for tag in tags]
        if bad := [tag for tag in added if not tag or len(tag) > MAX_TAG_LENGTH or not tag.isprintable()]:
            raise StudioError(f"{bad[0][:60]!r} can't be a tag.", f"A tag is one to {MAX_TAG_LENGTH} letters.")
        with self.db.write() as session:
            job = job_names.find(session, job_id)
            kept = dict.fromkeys(tag for tag in [*job.tags, *added] if tag not in remove)
            if len(kept) > MAX_TAGS:
                raise StudioError(f"A job takes at most {MAX_TAGS} tags.", "Take one off first.")
            job.tags = [*kept]
        return self.show(job.id)

    def note(self, job_id: str, text: str) -> JobDetail:
        """Replace a job's note; an empty text removes it."""
        if len(text) > MAX_NOTE_LENGTH:
            raise StudioError(f"The note has {len(text)} letters.", f"{MAX_NOTE_LENGTH} are possible.")
        with self.db.write() as session:
            job = job_names.find(session, job_id)
            job.notes = text.strip()
        return self.show(job.id)


def _trainings(session: Session, job: JobRow) -> list[JobRow]:
    """The job itself, or the children of a sweep."""
    if job.kind == JobKind.SWEEP:
        return job_rows.children(session, job)
    return [job]


def _last_end(spans: Sequence[Span], pending: int) -> float | None:
    """Seconds until all `pending` jobs have ended; None while one is unknown (a waiting comparison has no forecast)."""
    ends = [span.ends_in_s for span in spans if span.ends_in_s is not None]
    if not ends or not len(ends) == len(spans) == pending:
        return None
    return max(ends)
