"""Jobs: submit, list, watch, cancel. Reads and writes rows and run directories; starts no process and knows no queue but its bell."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import config as job_config
from jobs import executor, queue, recipes
from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN, JobConfig
from jobs.rundir import RunDir, write_json
from studio.catalogue import memory
from studio.catalogue.models import ModelRef, inspect_folder
from studio.datasets.rendering import Renderer
from studio.db import lifecycle
from studio.db.models import Adapter, Job, JobEvent, Metric, new_id
from studio.db.session import Database
from studio.errors import ConfigError, NotFoundError, StudioError
from studio.services import naming
from studio.services.datasets import DatasetService
from studio.services.models import ModelService
from studio.settings import Settings

MAX_POINTS = 400  # of a curve, whatever the length of the run
CHECKED_ROWS = 2000  # of a launch; the trainer checks every row again
TRAINABLE_KINDS = {"sft": ("sft", "text")}  # objective -> kinds of datasets it can learn from

Rows = list[dict[str, Any]]  # inside the class, `list` is a use case
Points = list[Metric]


class JobService:
    """What a person can do with jobs. Every method returns plain values in the shapes of the HTTP interface."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.datasets = datasets
        self.models = models

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
        chosen = recipes.get(recipe or recipes.DEFAULT_RECIPE)
        problems: list[StudioError] = []
        dataset = _gather(problems, lambda: self.datasets.show(data))
        model = _gather(problems, lambda: self.models.resolve(base_model, loadable=True))
        config = _gather(problems, lambda: job_config.build(chosen.options, options or {}))
        awaited = _gather(problems, lambda: self.show(after)["id"]) if after else None
        title = _gather(problems, lambda: self._free_name(name, dataset["name"] if dataset else "job"))
        if dataset and config:
            _gather(problems, lambda: _check_kind(dataset, config))
        _raise_all(problems)
        assert dataset and model and config and title
        # a row longer than the model's context can't be learned, whatever the option says
        context = inspect_folder(model.path).context or config.max_length
        frozen = {"base_model": model.name, "model_name_or_path": str(model.path), "max_length": min(config.max_length, context)}
        config = config.model_copy(update=frozen)
        renderer = self._check_rows(dataset, model, config)
        run = RunDir(self.settings.runs / new_id())
        self._check_disk(config, model)
        try:
            self._write_run(run, dataset["id"], config, renderer)
            job = Job(
                id=run.path.name,
                kind="train",
                queue="gpu",
                name=title,
                recipe=chosen.name,
                config=config.model_dump(mode="json"),
                run_dir=str(run.path),
                dataset_id=dataset["id"],
                base_model=model.name,
                after_id=awaited,
            )
            with self.db.write() as session:
                if _is_taken(session, title):  # somebody was quicker
                    job.name = (
                        naming.claim(title, lambda n: _is_taken(session, n))
                        if name
                        else naming.unique(title, lambda n: _is_taken(session, n))
                    )
                lifecycle.submit(session, job)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        queue.ring(self.settings.queue_path, "gpu", job.id)
        return self.show(job.id)

    def _free_name(self, wanted: str | None, fallback: str) -> str:
        with self.db.read() as session:
            if wanted:
                return naming.claim(wanted, lambda n: _is_taken(session, n))
            return naming.unique(naming.from_stem(fallback), lambda n: _is_taken(session, n))

    def _check_rows(self, dataset: Mapping[str, Any], model: ModelRef, config: JobConfig) -> Renderer:
        """The renderer of this run; refuses rows that would teach nothing."""
        renderer = Renderer.load(model.path, config.chat_template)
        found = self.datasets.check_for_training(dataset["id"], renderer, config.max_length, sample=CHECKED_ROWS)
        share = found["share_without_learned_tokens"]
        if not found["rows"]:
            raise ConfigError(f"Dataset {dataset['name']} has no rows to train on.", "Choose another.")
        if share > MAX_ROWS_WITHOUT_LEARNED_TOKEN:
            raise ConfigError(
                f"{share:.0%} of the rows of {dataset['name']} hold no token to learn with max_length={config.max_length} "
                f"(more than {MAX_ROWS_WITHOUT_LEARNED_TOKEN:.0%} is refused).",
                f"Set max_length to {max(int(found['p99']), config.max_length)} or more, or mend rows without an answer.",
            )
        return renderer

    def _check_disk(self, config: JobConfig, model: ModelRef) -> None:
        needed = memory.predict_disk_bytes(memory.model_config(model.path), config)
        free = shutil.disk_usage(self.settings.runs).free
        if needed > free:
            raise ConfigError(
                f"The run needs about {needed / 1e6:.0f} MB of disk for checkpoints; {self.settings.runs} has {free / 1e6:.0f} MB left.",
                "Make room, lower save_total_limit or lora.r, or put STUDIO_HOME on a larger disk.",
            )

    def _write_run(self, run: RunDir, dataset_id: str, config: JobConfig, renderer: Renderer) -> None:
        run.path.mkdir(parents=True)
        self.datasets.write_run_files(dataset_id, run, test_size=config.test_size, seed=config.seed)
        run.chat_template.write_text(renderer.template, encoding="utf-8")
        write_json(run.config, config.model_dump(mode="json"))

    def list(self, status: str | None = None) -> Rows:
        """What runs first, then what waits in the order it will start, then what has ended, newest first."""
        with self.db.read() as session:
            query = select(Job, Adapter.id).outerjoin(Adapter, Adapter.job_id == Job.id)
            if status:
                query = query.where(Job.status == status.upper())
            rows = [(job, adapter) for job, adapter in session.execute(query)]
        rows.sort(key=lambda row: _order(row[0]))
        return [_job(job, adapter) for job, adapter in rows]

    def show(self, job_id: str) -> dict[str, Any]:
        """One job with its configuration and what happened to it."""
        with self.db.read() as session:
            job = self._find(session, job_id)
            adapter = session.scalar(select(Adapter.id).where(Adapter.job_id == job.id))
            events = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.id)).all()
            return {
                **_job(job, adapter),
                "config": job.config,
                "result": job.result,
                "notes": job.notes,
                "tags": job.tags,
                "events": [{"at": e.at, "attempt": e.attempt, "kind": e.kind, **e.data} for e in events],
            }

    def logs(self, job_id: str, tail_lines: int = 200) -> str:
        """The end of the log of the latest attempt."""
        with self.db.read() as session:
            job = self._find(session, job_id)
        if not job.run_dir or not job.attempt:
            return ""
        return executor.logs(RunDir(Path(job.run_dir)).attempt(job.attempt), tail_lines)

    def metrics(self, job_id: str) -> Rows:
        """Training points in order of step; evaluation adds `eval_…` to the point of its step."""
        points: dict[int, dict[str, Any]] = {}
        for metric in self._metrics(job_id):
            values = (
                metric.values
                if metric.kind == "train"
                else {f"eval_{key}": value for key, value in metric.values.items() if key != "seconds"}
            )
            points.setdefault(metric.step, {"step": metric.step}).update(values)
        return [points[step] for step in sorted(points)]

    def curves(self, job_id: str, points: int = MAX_POINTS) -> dict[str, Rows]:
        """`{"train": […], "eval": […]}` with at most `points` points each; first and last are kept."""
        found: dict[str, Rows] = {"train": [], "eval": []}
        for metric in self._metrics(job_id):
            found.setdefault(metric.kind, []).append({"step": metric.step, **metric.values})
        return {kind: _thinned(series, points) for kind, series in found.items()}

    def _metrics(self, job_id: str) -> Points:
        with self.db.read() as session:
            job = self._find(session, job_id)
            return list(session.scalars(select(Metric).where(Metric.job_id == job.id).order_by(Metric.step, Metric.kind)))

    def cancel(self, job_id: str, keep: bool = False) -> dict[str, Any]:
        """Ask a job to end. With `keep`, the last verified checkpoint becomes its adapter."""
        with self.db.write() as session:
            job = self._find(session, job_id)
            lifecycle.cancel(session, job.id, keep=keep)
        queue.ring(self.settings.queue_path, job.queue, job.id)
        return self.show(job.id)

    def wait(self, job_id: str, timeout: float | None = None) -> dict[str, Any]:
        """Return the job once it has ended, or as it is when `timeout` seconds have passed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            job = self.show(job_id)
            if job["status"] in lifecycle.ENDED or (deadline is not None and time.monotonic() >= deadline):
                return job
            time.sleep(0.2)

    def overview(self) -> dict[str, Any]:
        """What runs, how many wait, and when the queue will be empty (seconds from now, None while unknown)."""
        with self.db.read() as session:
            running = [_job(job, None) for job in session.scalars(select(Job).where(Job.status == "RUNNING").order_by(Job.started_at))]
            queued = session.scalar(select(func.count()).select_from(Job).where(Job.status == "QUEUED")) or 0
        etas = [job["progress"]["eta_s"] for job in running]
        known = not queued and all(eta is not None for eta in etas)
        return {"running": running, "queued": queued, "queue_eta_s": max(etas, default=None) if known else None}

    def _find(self, session: Session, job_id: str) -> Job:
        found = session.get(Job, job_id) or session.scalar(select(Job).where(Job.name == job_id))
        if found is None:
            known = session.scalars(select(Job.name)).all()
            raise NotFoundError(f"There is no job {job_id!r}.", naming.suggest(job_id, known))
        return found


def _gather(problems: list[StudioError], step: Any) -> Any:
    """The step's value, or None with its problem kept: a form shows all its problems at once."""
    try:
        return step()
    except StudioError as exc:
        problems.append(exc)
        return None


def _raise_all(problems: list[StudioError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(" ".join(str(p) for p in problems), problems=[str(p) for p in problems])


def _check_kind(dataset: Mapping[str, Any], config: JobConfig) -> None:
    wanted = TRAINABLE_KINDS[config.objective]
    if dataset["kind"] not in wanted:
        raise ConfigError(
            f"Dataset {dataset['name']} holds {dataset['kind']} rows, and {config.objective} learns from {' or '.join(wanted)} rows.",
            "Choose a dataset of conversations, instructions or texts.",
        )


def _is_taken(session: Session, name: str) -> bool:
    """An adapter takes its job's name, so both are one name space."""
    in_jobs = session.scalar(select(Job.id).where(Job.name == name))
    return in_jobs is not None or session.scalar(select(Adapter.id).where(Adapter.name == name)) is not None


def _order(job: Job) -> tuple[int, float, float]:
    if job.status == "RUNNING":
        return (0, job.started_at or 0.0, 0.0)
    if job.status in lifecycle.ENDED:
        return (2, -(job.ended_at or job.created_at), 0.0)
    return (1, -job.priority, job.created_at)


def _job(job: Job, adapter: str | None) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "status": job.status,
        "attempt": job.attempt,
        "progress": {"step": job.step, "max_steps": job.max_steps, "eta_s": job.eta_s},
        "reason": job.reason,
        "fix": job.fix,
        "run_dir": job.run_dir,
        "adapter": adapter,
        "base_model": job.base_model,
        "recipe": job.recipe,
        "data": job.dataset_id,
        "stopping": job.cancel,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
    }


def _thinned(series: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    if len(series) <= points:
        return series
    chosen = {round(i * (len(series) - 1) / (points - 1)) for i in range(points)}
    return [series[i] for i in sorted(chosen)]
