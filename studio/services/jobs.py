"""Jobs: submit, sweep, clone; pause, resume, retry, move, cancel; list, watch, compare.

Reads and writes rows and run directories; starts no process and knows no queue but its bell.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import config as job_config
from jobs import executor, queue
from jobs.config import JobConfig
from jobs.rundir import RunDir
from studio.catalogue.models import ModelRef, inspect_folder
from studio.datasets.rendering import Renderer
from studio.db import lifecycle
from studio.db.models import AdapterRow, DatasetRow, JobEventRow, JobRow, MetricRow, new_id
from studio.db.session import Database
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import JobScript
from studio.services import curves, naming, reports
from studio.services.datasets import DatasetService
from studio.services.forecast import Span, forecast
from studio.services.judged import judged
from studio.services.launching import Launcher, LaunchProblems, combinations, training, write_run
from studio.services.models import ModelService
from studio.services.scripts import ScriptWriter
from studio.settings import Settings

MAX_TAGS, MAX_TAG_LENGTH, MAX_NOTE_LENGTH, MAX_COMPARED = 20, 40, 10_000, 20
HELD = "gpu"  # the queue that a person pauses: comparisons only ask the engine and go on

Rows = list[dict[str, Any]]  # inside the class, `list` is a use case


class JobService:
    """What a person can do with jobs. Every method returns plain values in the shapes of the HTTP interface."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.datasets = datasets
        self.models = models
        self.launcher = Launcher(settings, datasets, models)

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
    ) -> dict[str, Any]:
        """Queue a training job; returns it. `options` are JobConfig's dotted keys.

        Raises StudioError with every reason at once when the launch can't work; then nothing is queued and no file stays.
        """
        problems = LaunchProblems()
        awaited = problems.gather(lambda: self.show(after)["id"]) if after else None
        title = problems.gather(lambda: self._free_name(name, lambda: self.datasets.show(data).name))
        plans = self.launcher.plan(problems, data, base_model, recipe, [options or {}])
        problems.raise_all()
        assert title is not None
        with self.launcher.jobs(plans) as (job,):
            job.after_id = awaited
            with self.db.write() as session:
                self._queue(session, job, title, is_given=bool(name))
        queue.ring(self.settings.queue_path, "gpu", job.id)
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
    ) -> dict[str, Any]:
        """Queue one training per combination of the grid's values (at most 64), and the job that stands for them all; returns that.

        `grid`: dotted key -> list of values. Raises StudioError with every reason; then nothing is queued.
        """
        problems = LaunchProblems()
        chosen = problems.gather(lambda: combinations(grid, options or {})) or []
        awaited = problems.gather(lambda: self.show(after)["id"]) if after else None
        title = problems.gather(lambda: self._free_name(name, lambda: f"sweep-{self.datasets.show(data).name}"))
        plans = self.launcher.plan(problems, data, base_model, recipe, [{**(options or {}), **one} for one in chosen]) if chosen else []
        problems.raise_all()
        assert title is not None
        first = plans[0]
        parent = JobRow(
            id=new_id(),
            kind=lifecycle.SWEEP,
            queue="",
            recipe=first.recipe,
            config={"grid": {key: list(values) for key, values in grid.items()}, "options": dict(options or {})},
            dataset_id=first.dataset.id,
            base_model=first.config.base_model,
        )
        with self.launcher.jobs(plans) as children, self.db.write() as session:
            self._queue(session, parent, title, is_given=bool(name))
            for number, child in enumerate(children, 1):
                child.parent_id, child.after_id = parent.id, awaited
                self._queue(session, child, f"{parent.name[:60]}-{number}", is_given=False)
        queue.ring(self.settings.queue_path, "gpu", parent.id)
        return self.show(parent.id)

    def clone(self, job_id: str, *, options: Mapping[str, Any] | None = None, name: str | None = None) -> dict[str, Any]:
        """Queue another job with this one's data and options, some of them changed. Raises StudioError as `submit` does."""
        with self.db.read() as session:
            original = self._find(session, job_id)
        if original.kind != "train":
            raise StudioError(f"{original.name} is a {original.kind} job; only a training can be cloned.", "Name a training.")
        changes = dict(options or {})
        title = self._free_name(name, lambda: original.name)
        config = job_config.build(original.config, changes)
        if original.dataset_id is None:
            return self._clone_files(original, config, changes, title, is_given=bool(name))
        model = self._model_of(original, changes)
        kept = RunDir(Path(original.run_dir)).chat_template
        if "chat_template" not in changes and (config.chat_template or "").endswith(".jinja") and kept.is_file():
            config = config.model_copy(update={"chat_template": str(kept)})  # the file it once came from may be gone
        problems = LaunchProblems()
        plans = self.launcher.plan(problems, original.dataset_id, model, original.recipe, [config.model_dump(mode="json")])
        problems.raise_all()
        with self.launcher.jobs(plans) as (job,), self.db.write() as session:
            self._queue(session, job, title, is_given=bool(name))
            lifecycle.note(session, job.id, 0, "cloned", {"from": original.id, "name": original.name, "changes": changes})
        queue.ring(self.settings.queue_path, "gpu", job.id)
        return self.show(job.id)

    def _model_of(self, original: JobRow, changes: Mapping[str, Any]) -> str | ModelRef:
        """The base model of a clone: the one it had, also where that was a folder somebody named at the terminal."""
        if "base_model" in changes:
            return str(changes["base_model"])
        model = ModelRef(original.base_model, Path(original.config.get("model_name_or_path") or ""))
        if not (facts := inspect_folder(model.path)).loadable:
            raise ModelError(f"Model {model.name} can't be loaded: {facts.reason}", facts.fix)
        return model

    def _clone_files(
        self, original: JobRow, config: JobConfig, changes: Mapping[str, Any], title: str, *, is_given: bool
    ) -> dict[str, Any]:
        """A clone whose dataset is gone: from the copy of the rows that the run has kept."""
        if unfit := {"test_size", "seed", "base_model"} & set(changes):
            raise StudioError(
                f"The dataset of {original.name} is gone, so its rows can't be divided anew ({', '.join(sorted(unfit))}).",
                "Leave that option as it was, or add the data again.",
            )
        run = RunDir(Path(original.run_dir))
        if not run.train.is_file():
            raise NotFoundError(f"The rows of {original.name} are gone.", "Add the data again and train on it.")
        job = self.launch_files(
            run, config, original.recipe, title, is_given=is_given, note={"from": original.id, "changes": dict(changes)}
        )
        return self.show(job)

    def launch_files(
        self, source: RunDir, config: JobConfig, recipe: str, title: str, *, is_given: bool, note: dict[str, Any], kind: str = "cloned"
    ) -> str:
        """Queue a training on the rows and the template of another run directory; its ID."""
        self.launcher.check_disk([config])
        run = RunDir(self.settings.runs / new_id())
        run.path.mkdir(parents=True)
        try:
            for old, new in ((source.train, run.train), (source.eval, run.eval)):
                shutil.copyfile(old, new)
            template = str(source.chat_template) if source.chat_template.exists() else config.chat_template
            renderer = Renderer.load(Path(config.model_name_or_path), template)
            write_run(run, config, renderer)
            with run.train.open("rb") as file:
                rows = sum(1 for _ in file)
            job = training(run, recipe, config, None, rows, created_at=time.time())
            with self.db.write() as session:
                job.dataset_id = session.scalar(select(DatasetRow.id).where(DatasetRow.sha256 == note.get("dataset_sha256", "-")))
                self._queue(session, job, title, is_given=is_given)
                lifecycle.note(session, job.id, 0, kind, note)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        queue.ring(self.settings.queue_path, "gpu", job.id)
        return job.id

    def apply_remedy(self, job_id: str) -> dict[str, Any]:
        """Clone a failed job with the options that would have helped; returns the new one."""
        job = self.show(job_id)
        if not job["remedy"]:
            raise StudioError(
                f"No change of options is known that would help {job['name']}.", job["fix"] or "Look at its reason: `studio jobs show`."
            )
        return self.clone(job["id"], options=job["remedy"])

    def _queue(self, session: Session, job: JobRow, title: str, *, is_given: bool) -> None:
        """Give it its name, unless somebody was quicker, and queue it."""
        job.name = (
            naming.claim(title, lambda n: _is_taken(session, n)) if is_given else naming.unique(title, lambda n: _is_taken(session, n))
        )
        lifecycle.submit(session, job)

    def _free_name(self, wanted: str | None, fallback: Callable[[], str]) -> str:
        with self.db.read() as session:
            if wanted:
                return naming.claim(wanted, lambda n: _is_taken(session, n))
            try:
                stem = fallback()
            except StudioError:  # whoever gathers problems hears of it from the data's own check
                stem = "job"
            return naming.unique(naming.from_stem(stem), lambda n: _is_taken(session, n))

    # the queue

    def cancel(self, job_id: str, keep: bool = False) -> dict[str, Any]:
        """Ask a job to end. With `keep`, the last verified checkpoint becomes its adapter."""
        return self._do(job_id, lambda session, job: lifecycle.cancel(session, job.id, keep=keep))

    def pause(self, job_id: str) -> dict[str, Any]:
        """Set a waiting job aside, or ask a running one to stop at a checkpoint; it stays PAUSED until resumed."""
        return self._do(job_id, lambda session, job: lifecycle.pause(session, job.id))

    def resume(self, job_id: str) -> dict[str, Any]:
        """Queue a paused job in its old place; it goes on to the bit where it stopped."""
        return self._do(job_id, lambda session, job: lifecycle.resume(session, job.id))

    def retry(self, job_id: str) -> dict[str, Any]:
        """Queue a failed or cancelled job once more; it goes on from its last verified checkpoint."""
        return self._do(job_id, lambda session, job: lifecycle.retry(session, job.id))

    def move(self, job_id: str, priority: int | None = None, before: str | None = None) -> dict[str, Any]:
        """Another priority for a waiting job (higher runs first), or the place in front of another one."""

        def act(session: Session, job: JobRow) -> None:
            lifecycle.move(session, job.id, priority, self._find(session, before).id if before else None)

        return self._do(job_id, act)

    def _do(self, job_id: str, act: Callable[[Session, JobRow], object]) -> dict[str, Any]:
        with self.db.write() as session:
            job = self._find(session, job_id)
            act(session, job)
        queue.ring(self.settings.queue_path, job.queue or HELD, job.id)
        return self.show(job.id)

    def pause_queue(self) -> dict[str, Any]:
        """Start no further training until resumed, also after a restart; what runs goes on. The overview."""
        with self.db.write() as session:
            lifecycle.pause_queue(session, HELD)
        return self.overview()

    def resume_queue(self) -> dict[str, Any]:
        """Let the queue run again. The overview."""
        with self.db.write() as session:
            lifecycle.resume_queue(session, HELD)
        queue.ring(self.settings.queue_path, HELD, "resume")
        return self.overview()

    def overview(self) -> dict[str, Any]:
        """What runs, how many wait, whether the queue is paused, and when it will be empty (seconds from now, None while unknown)."""
        with self.db.read() as session:
            spans = forecast(session)
            running = sorted(
                (job for job in lifecycle.running(session) if job.kind != lifecycle.REPORT), key=lambda job: job.started_at or 0.0
            )
            waiting = (JobRow.status == "QUEUED", JobRow.kind.not_in((lifecycle.SWEEP, lifecycle.REPORT)))
            queued = session.scalar(select(func.count()).select_from(JobRow).where(*waiting)) or 0
            is_paused = lifecycle.queue_is_paused(session, HELD)
        ends = [span.ends_in_s for span in spans.values()]
        known = [end for end in ends if end is not None]
        is_known = bool(known) and len(known) == len(ends) == len(running) + queued  # a waiting comparison has no forecast
        return {
            "running": [_job(job, None, spans.get(job.id)) for job in running],
            "queued": queued,
            "paused": is_paused,
            "queue_eta_s": max(known) if is_known else None,
        }

    # looking

    def list(self, status: str | None = None, search: str | None = None) -> Rows:
        """What runs first, then what waits in the order it will start, then what has ended, newest first.

        `search`: words that all occur in a job's name, ID, kind, model, data, recipe, tags, notes or reason. Reports are not listed:
        each belongs to its training, which shows it.
        """
        with self.db.read() as session:
            query = select(JobRow, AdapterRow.id, DatasetRow.name).outerjoin(AdapterRow, AdapterRow.job_id == JobRow.id)
            query = query.outerjoin(DatasetRow, DatasetRow.id == JobRow.dataset_id).where(JobRow.kind != lifecycle.REPORT)
            if status:
                query = query.where(JobRow.status == status.upper())
            rows = [(job, adapter, data) for job, adapter, data in session.execute(query)]
            spans = forecast(session) if any(job.status in ("QUEUED", "RUNNING") for job, _, _ in rows) else {}
        words = (search or "").casefold().split()
        rows = [row for row in rows if all(word in _searched(row[0], row[2]) for word in words)]
        rows.sort(key=lambda row: _order(row[0]))
        return [_job(job, adapter, spans.get(job.id)) for job, adapter, _ in rows]

    def show(self, job_id: str) -> dict[str, Any]:
        """One job with its configuration and what happened to it; a sweep with its children."""
        with self.db.read() as session:
            job = self._find(session, job_id)
            adapter = session.scalar(select(AdapterRow.id).where(AdapterRow.job_id == job.id))
            events = session.scalars(select(JobEventRow).where(JobEventRow.job_id == job.id).order_by(JobEventRow.id)).all()
            spans = forecast(session) if job.status in ("QUEUED", "RUNNING") else {}
            shown = {
                **_job(job, adapter, spans.get(job.id)),
                "config": job.config,
                "result": job.result,
                "events": [{"at": e.at, "attempt": e.attempt, "kind": e.kind, **e.data} for e in events],
                "watched": curves.watched(session, job.id) if job.kind == "train" else None,
                "report": reports.record(report) if job.kind == "train" and (report := reports.newest(session, job.id)) else None,
            }
            return {**shown, "children": _children(session, job)} if job.kind == lifecycle.SWEEP else shown

    def compare(self, job_ids: Sequence[str]) -> dict[str, Any]:
        """Runs beside each other: {"jobs", "differences": {option: [value per job]}, "curves", "results", "judged": {id: …}}.

        `differences` holds the options in which they are not all equal, in the order of `jobs`; a sweep stands for its children.
        `judged` is None for a run that no judge has seen, else what services.judged says of it.
        """
        with self.db.read() as session:
            named = [self._find(session, job_id) for job_id in job_ids]
            nested = [lifecycle.children(session, job) if job.kind == lifecycle.SWEEP else [job] for job in named]
            jobs = [*{job.id: job for group in nested for job in group}.values()]
            data = {dataset: name for dataset, name in session.execute(select(DatasetRow.id, DatasetRow.name))}
            adapters = {job_id: adapter for job_id, adapter in session.execute(select(AdapterRow.job_id, AdapterRow.id))}
            verdicts = judged(session, [job.id for job in jobs])
        trainings = [job for job in jobs if job.kind == "train"]
        if len(trainings) != len(jobs) or not 2 <= len(jobs) <= max(MAX_COMPARED, len(nested[0]) if nested else 0):
            raise StudioError("Only trainings can be compared, two to twenty of them.", "Name two or more trainings, or a sweep.")
        options = [{"data": data.get(job.dataset_id or "", ""), "recipe": job.recipe, **_flat(job.config)} for job in jobs]
        return {
            "jobs": [_job(job, adapters.get(job.id), None) for job in jobs],
            "differences": _differences(options),
            "curves": {job.id: self.curves(job.id) for job in jobs},
            "results": {job.id: job.result for job in jobs},
            "judged": verdicts,
        }

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
            job = self._find(session, job_id)
        if job.kind != "train":
            raise StudioError(f"{job.name} is no training.", "Name a training.")
        return job, ScriptWriter.of(job.name, JobConfig.model_validate(job.config), RunDir(Path(job.run_dir)))

    def logs(self, job_id: str, tail_lines: int = 200) -> str:
        """The end of the log of the latest attempt."""
        with self.db.read() as session:
            job = self._find(session, job_id)
        if not job.run_dir or not job.attempt:
            return ""
        return executor.logs(RunDir(Path(job.run_dir)).attempt(job.attempt), tail_lines)

    def metrics(self, job_id: str) -> Rows:
        """Training points in order of step; evaluation adds `eval_…` to the point of its step, memory, use and drift their own keys."""
        points: dict[int, dict[str, Any]] = {}
        with self.db.read() as session:
            mine = (MetricRow.job_id == self._find(session, job_id).id, MetricRow.kind.in_(curves.CURVES))
            # training comes last: its loss and its time are the point's own
            for metric in session.scalars(select(MetricRow).where(*mine).order_by(MetricRow.step, MetricRow.kind)):
                points.setdefault(metric.step, {"step": metric.step}).update(_named(metric))
        # what was looked at before the first step is no point of the training: `curves` has it
        points = {step: point for step, point in points.items() if "loss" in point or "eval_loss" in point}
        return [points[step] for step in sorted(points)]

    def curves(self, job_id: str, points: int = curves.MAX_POINTS) -> dict[str, Rows]:
        """`{"train": […], "eval": […], "machine": […], "drift": […]}` with at most `points` points each; first and last are kept."""
        with self.db.read() as session:
            return curves.curves(session, self._find(session, job_id).id, points)

    def wait(self, job_id: str, timeout: float | None = None) -> dict[str, Any]:
        """Return the job once it has ended, or as it is when `timeout` seconds have passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            job = self.show(job_id)
            if job["status"] in lifecycle.ENDED or (deadline is not None and time.monotonic() >= deadline):
                return job
            time.sleep(0.2)

    # what people write on jobs

    def tag(self, job_id: str, tags: Sequence[str], remove: Sequence[str] = ()) -> dict[str, Any]:
        """Add tags to a job, and take others off."""
        added = [" ".join(tag.split()) for tag in tags]
        if bad := [tag for tag in added if not tag or len(tag) > MAX_TAG_LENGTH or not tag.isprintable()]:
            raise StudioError(f"{bad[0][:60]!r} can't be a tag.", f"A tag is one to {MAX_TAG_LENGTH} letters.")
        with self.db.write() as session:
            job = self._find(session, job_id)
            kept = dict.fromkeys(tag for tag in [*job.tags, *added] if tag not in remove)
            if len(kept) > MAX_TAGS:
                raise StudioError(f"A job takes at most {MAX_TAGS} tags.", "Take one off first.")
            job.tags = [*kept]
        return self.show(job.id)

    def note(self, job_id: str, text: str) -> dict[str, Any]:
        """Replace a job's note; an empty text removes it."""
        if len(text) > MAX_NOTE_LENGTH:
            raise StudioError(f"The note has {len(text)} letters.", f"{MAX_NOTE_LENGTH} are possible.")
        with self.db.write() as session:
            job = self._find(session, job_id)
            job.notes = text.strip()
        return self.show(job.id)

    def _find(self, session: Session, job_id: str) -> JobRow:
        found = session.get(JobRow, job_id) or session.scalar(select(JobRow).where(JobRow.name == job_id))
        if found is None:
            known = session.scalars(select(JobRow.name)).all()
            raise NotFoundError(f"There is no job {job_id!r}.", naming.suggest(job_id, known))
        return found


def _is_taken(session: Session, name: str) -> bool:
    """An adapter takes its job's name, so both are one name space."""
    in_jobs = session.scalar(select(JobRow.id).where(JobRow.name == name))
    return in_jobs is not None or session.scalar(select(AdapterRow.id).where(AdapterRow.name == name)) is not None


def _order(job: JobRow) -> tuple[int, float, float]:
    if job.status == "RUNNING":
        return (0, job.started_at or 0.0, 0.0)
    if job.status in lifecycle.ENDED:
        return (2, -(job.ended_at or job.created_at), 0.0)
    return (1, -job.priority, job.rank)


def _searched(job: JobRow, data: str | None) -> str:
    fields = (job.name, job.id, job.kind, job.status, job.base_model, data or "", job.recipe, *job.tags, job.notes, job.reason)
    return "\n".join(str(field) for field in fields).casefold()


def _job(job: JobRow, adapter: str | None, span: Span | None) -> dict[str, Any]:
    ends_in = span.ends_in_s if span else None
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "attempt": job.attempt,
        "progress": {"step": job.step, "max_steps": job.max_steps, "eta_s": job.eta_s},
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
        "stopping": job.cancel,
        "starts_in_s": span.starts_in_s if span else None,
        "ends_at": time.time() + ends_in if ends_in is not None else None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
    }


def _children(session: Session, sweep: JobRow) -> Rows:
    """Each with the values of the grid that are its own."""
    keys = sweep.config["grid"]
    return [
        {**_job(child, None, None), "options": {key: _flat(child.config).get(key) for key in keys}, "result": child.result}
        for child in lifecycle.children(session, sweep)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lora": {"r": 8}} -> {"lora.r": 8}"""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _differences(options: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
    """The keys whose values are not all equal, with them."""
    keys = dict.fromkeys(key for one in options for key in one if key != "model_name_or_path")
    columns = {key: [one.get(key) for one in options] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def _named(metric: MetricRow) -> dict[str, Any]:
    """The values of a point under the names by which they share a row with the others of their step."""
    if metric.kind == "eval":
        return {f"eval_{key}": value for key, value in metric.values.items() if key != "seconds"}
    return {key: value for key, value in metric.values.items() if metric.kind == "train" or key != "at"}
