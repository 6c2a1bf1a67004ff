"""Trainings that repeat an earlier one: clones, remedies of failures, and reruns from the files of a run directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from sqlalchemy import select

from jobs import config as job_config
from jobs import kinds, queue
from jobs.config import JobConfig
from jobs.rundir import RunDir
from studio.catalogue.models import ModelRef, inspect_folder
from studio.datasets.rendering import Renderer
from studio.db import job_rows
from studio.db.models import DatasetRow, JobRow, new_id
from studio.db.session import Database
from studio.errors import ModelError, NotFoundError, StudioError
from studio.records import QueueName
from studio.services import job_names
from studio.services.launching import Launcher, LaunchProblems, training, write_run
from studio.settings import Settings

Note = Mapping[str, JsonValue]  # data of the event that says where a job comes from


class Cloner:
    """Queues trainings like earlier ones; every method returns the ID of the new job."""

    def __init__(self, settings: Settings, db: Database, launcher: Launcher) -> None:
        self.settings = settings
        self.db = db
        self.launcher = launcher

    def clone(self, job_id: str, options: Mapping[str, Any], name: str | None) -> str:
        """The data and options of a job, some of them changed. Raises StudioError with every reason at once."""
        with self.db.read() as session:
            original = job_names.find(session, job_id)
        if original.kind not in kinds.KINDS or not kinds.KINDS[original.kind].is_clonable:
            can = " or ".join(entry.title for entry in kinds.ENTRIES if entry.is_clonable)
            raise StudioError(f"{original.name} is a job of kind {original.kind}; only a {can} can be cloned.", f"Name a {can}.")
        title = job_names.free_name(self.db, name, lambda: original.name)
        config = job_config.build(original.config, dict(options))
        if original.dataset_id is None:
            return self._clone_files(original, config, options, title, is_given=bool(name))
        model = self._model_of(original, options)
        kept = RunDir(Path(original.run_dir)).chat_template
        if "chat_template" not in options and (config.chat_template or "").endswith(".jinja") and kept.is_file():
            config = config.model_copy(update={"chat_template": str(kept)})  # the file it once came from may be gone
        problems = LaunchProblems()
        plans = self.launcher.plan(problems, original.dataset_id, model, original.recipe, [config.model_dump(mode="json")])
        problems.raise_all()
        with self.launcher.jobs(plans) as (job,), self.db.write() as session:
            job_names.submit(session, job, title, is_given=bool(name))
            plans[0].note(session, job)
            job_rows.note(session, job.id, 0, "cloned", {"from": original.id, "name": original.name, "changes": dict(options)})
        queue.notify(self.settings.queue_path, QueueName.GPU)
        return job.id

    def _model_of(self, original: JobRow, changes: Mapping[str, Any]) -> str | ModelRef:
        """The base model of a clone: the one it had, also where that was a folder named at the terminal."""
        if "base_model" in changes:
            return str(changes["base_model"])
        model = ModelRef(original.base_model, Path(original.config.get("model_name_or_path") or ""))
        if not (facts := inspect_folder(model.path)).loadable:
            raise ModelError(f"Model {model.name} can't be loaded: {facts.reason}", facts.fix)
        return model

    def _clone_files(self, original: JobRow, config: JobConfig, changes: Mapping[str, Any], title: str, *, is_given: bool) -> str:
        """A clone whose dataset is gone: from the copy of the rows in the run directory."""
        if unfit := {"test_size", "seed", "base_model"} & set(changes):
            raise StudioError(
                f"The dataset of {original.name} is gone, so its rows can't be divided anew ({', '.join(sorted(unfit))}).",
                "Leave that option as it was, or add the data again.",
            )
        run = RunDir(Path(original.run_dir))
        if not run.train.is_file():
            raise NotFoundError(f"The rows of {original.name} are gone.", "Add the data again and train on it.")
        note: dict[str, JsonValue] = {"from": original.id, "changes": dict(changes)}
        return self.launch_files(run, config, original.recipe, title, is_given=is_given, note=note)

    def launch_files(
        self, source: RunDir, config: JobConfig, recipe: str, title: str, *, is_given: bool, note: Note, kind: str = "cloned"
    ) -> str:
        """Queue a training on the rows and the template of another run directory; `note` is its event of this `kind`."""
        self.launcher.check_disk([config])
        run = RunDir(self.settings.runs / new_id())
        run.path.mkdir(parents=True)
        try:
            for old, new in ((source.train, run.train), (source.eval, run.eval)):
                shutil.copyfile(old, new)
            template = config.chat_template
            if source.chat_template.exists():
                template = str(source.chat_template)
            renderer = Renderer.load(Path(config.model_name_or_path), template, config.row_options())
            write_run(run, config, renderer)
            with run.train.open("rb") as file:
                rows = sum(1 for _ in file)
            job = training(run, recipe, config, None, rows, created_at=time.time())
            with self.db.write() as session:
                job.dataset_id = session.scalar(select(DatasetRow.id).where(DatasetRow.sha256 == note.get("dataset_sha256", "-")))
                job_names.submit(session, job, title, is_given=is_given)
                job_rows.note(session, job.id, 0, kind, dict(note))
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        queue.notify(self.settings.queue_path, QueueName.GPU)
        return job.id
