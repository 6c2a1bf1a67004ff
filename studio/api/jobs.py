"""/api: trainings, sweeps and the queue; whatever else can be done to a job."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field, JsonValue
from starlette.background import BackgroundTask

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here, kept_upload
from studio.records import BundleCheck, Job, JobComparison, JobDetail, JobLog, JobScript, MetricPoint, QueueOverview, Report

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewJob(Body):
    data: str
    base_model: str = "starter"
    recipe: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    name: str | None = None
    after: str | None = None
    fit_memory: bool = Field(default=False, description="Change batch, recomputing, optimizer or length so that it fits the memory.")


class NewSweep(NewJob):
    grid: dict[str, list[JsonValue]] = Field(description="Dotted option -> the values to try; at most 64 combinations.")


class Clone(Body):
    options: dict[str, JsonValue] = Field(default_factory=dict, description="Options that are to differ from the original's.")
    name: str | None = None


class Cancel(Body):
    keep: bool = False


class Retry(Body):
    fix: bool = Field(default=False, description="As a new job, with the options that the failure's remedy names.")


class NewPlace(Body):
    priority: int | None = Field(default=None, ge=-1000, le=1000, description="Higher runs first.")
    before: str | None = Field(default=None, description="The waiting job that is to run right after this one.")


class Tags(Body):
    add: list[str] = Field(default_factory=list)
    remove: list[str] = Field(default_factory=list)


class Note(Body):
    text: str


class NewReport(Body):
    rows: int | None = Field(default=None, ge=1, le=1000, description="Held-out rows; as the training said where it is left out.")


@router.get("/jobs")
def list_jobs(studio: Here, part: AskedPart, status: str | None = None, search: str | None = None) -> list[Job]:
    return part.told(studio.jobs.list(status, search, part.page))


@router.get("/queue")
def show_queue(studio: Here) -> QueueOverview:
    """What runs, how many wait, whether the queue is paused and when it will be empty."""
    return studio.jobs.overview()


@router.post("/queue/pause")
def pause_queue(studio: Here) -> QueueOverview:
    """Start no further training; what runs goes on."""
    return studio.jobs.pause_queue()


@router.post("/queue/resume")
def resume_queue(studio: Here) -> QueueOverview:
    return studio.jobs.resume_queue()


@router.post("/jobs", status_code=201)
def submit_job(studio: Here, body: NewJob) -> JobDetail:
    """Queue a training job."""
    return studio.jobs.submit(
        data=body.data,
        base_model=body.base_model,
        recipe=body.recipe,
        options=body.options,
        name=body.name,
        after=body.after,
        fit_memory=body.fit_memory,
    )


@router.post("/sweeps", status_code=201)
def sweep(studio: Here, body: NewSweep) -> JobDetail:
    """Queue one training per combination of options, and the job that stands for them."""
    return studio.jobs.sweep(
        data=body.data,
        base_model=body.base_model,
        grid=body.grid,
        recipe=body.recipe,
        options=body.options,
        name=body.name,
        after=body.after,
        fit_memory=body.fit_memory,
    )


@router.get("/jobs/compare")
def compare_jobs(studio: Here, job: Annotated[list[str], Query(description="Two or more, by ID or name.")]) -> JobComparison:
    """Runs beside each other: differences of their options, curves, results."""
    return studio.jobs.compare(job)


@router.post("/jobs/rerun", status_code=201)
def rerun(studio: Here, file: Annotated[UploadFile, File()], name: Annotated[str | None, Form()] = None) -> JobDetail:
    """Train a bundle's run again."""
    with kept_upload(studio, file) as path:
        return studio.bundles.rerun(path, name)


@router.post("/jobs/verify")
def verify(studio: Here, file: Annotated[UploadFile, File()]) -> BundleCheck:
    """Whether a bundle's run gives the same adapter here; the first call queues the rerun, ask again until it has ended."""
    with kept_upload(studio, file) as path:
        return studio.bundles.verify(path)


@router.get("/jobs/{job}")
def show_job(studio: Here, job: str) -> JobDetail:
    return studio.jobs.show(job)


@router.get("/jobs/{job}/report")
def job_report(studio: Here, job: str) -> Report:
    """Base against adapter on held-out rows; it follows every training by itself."""
    return studio.reports.show(job)


@router.post("/jobs/{job}/report", status_code=201)
def make_job_report(studio: Here, job: str, body: NewReport | None = None) -> Report:
    """Once more, or for an adapter that was kept from a cancelled training."""
    return studio.reports.make(job, (body or NewReport()).rows)


@router.get("/jobs/{job}/logs")
def job_logs(studio: Here, job: str, tail_lines: Annotated[int, Query(ge=1, le=100_000)] = 200) -> JobLog:
    return JobLog(id=job, text=studio.jobs.logs(job, tail_lines))


@router.get("/jobs/{job}/metrics")
def job_metrics(studio: Here, part: AskedPart, job: str) -> list[MetricPoint]:
    return part.of(studio.jobs.metrics(job))


@router.post("/jobs/{job}/cancel")
def cancel_job(studio: Here, job: str, body: Cancel | None = None) -> JobDetail:
    """Stop a job; with `keep`, its last checkpoint becomes its adapter."""
    return studio.jobs.cancel(job, keep=(body or Cancel()).keep)


@router.post("/jobs/{job}/pause")
def pause_job(studio: Here, job: str) -> JobDetail:
    """Set a job aside; a running one stops at a checkpoint."""
    return studio.jobs.pause(job)


@router.post("/jobs/{job}/resume")
def resume_job(studio: Here, job: str) -> JobDetail:
    return studio.jobs.resume(job)


@router.post("/jobs/{job}/retry")
def retry_job(studio: Here, job: str, body: Retry | None = None) -> JobDetail:
    """Run a failed or cancelled job again from its last checkpoint; with `fix`, a new one with its remedy."""
    if (body or Retry()).fix:
        return studio.jobs.apply_remedy(job)
    return studio.jobs.retry(job)


@router.post("/jobs/{job}/clone", status_code=201)
def clone_job(studio: Here, job: str, body: Clone | None = None) -> JobDetail:
    """Queue another job with the same data and options, some of them changed."""
    body = body or Clone()
    return studio.jobs.clone(job, options=body.options, name=body.name)


@router.post("/jobs/{job}/move")
def move_job(studio: Here, job: str, body: NewPlace) -> JobDetail:
    """Another priority, or the place in front of another waiting job."""
    return studio.jobs.move(job, body.priority, body.before)


@router.post("/jobs/{job}/tags")
def tag_job(studio: Here, job: str, body: Tags) -> JobDetail:
    return studio.jobs.tag(job, body.add, body.remove)


@router.post("/jobs/{job}/note")
def note_job(studio: Here, job: str, body: Note) -> JobDetail:
    """Replace the note; an empty text removes it."""
    return studio.jobs.note(job, body.text)


@router.get("/jobs/{job}/script")
def job_script(studio: Here, job: str) -> JobScript:
    """The training as a TRL script; script.zip holds it with the rows that it reads."""
    return studio.jobs.script(job)


@router.get("/jobs/{job}/script.zip", response_class=FileResponse)
def job_script_files(studio: Here, job: str) -> FileResponse:
    """The script with the rows that it reads as token ids, and the chat template."""
    folder = Path(tempfile.mkdtemp(dir=studio.settings.cache))
    try:
        target = folder / f"{studio.jobs.script(job).name}-script.zip"
        studio.jobs.script_zip(job, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(target, filename=target.name, background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True))


@router.get("/jobs/{job}/bundle", response_class=FileResponse)
def job_bundle(studio: Here, job: str) -> FileResponse:
    """Everything of a run as a .zip file."""
    folder = Path(tempfile.mkdtemp(dir=studio.settings.cache))
    try:
        target = folder / f"{studio.jobs.show(job).name}.zip"
        studio.bundles.bundle(job, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(target, filename=target.name, background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True))
