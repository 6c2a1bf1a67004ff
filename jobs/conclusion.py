"""The end of an attempt, written down: the job's new status, its adapter, a second try with a smaller batch, a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import follow_up
from jobs.config import JobConfig
from jobs.outcome import Outcome
from jobs.rundir import RunDir, sha256
from jobs.trainers.failures import OUT_OF_MEMORY, smaller_batch
from studio.db import lifecycle
from studio.db.lifecycle import Claim
from studio.db.models import AdapterRow, JobRow
from studio.records import CancelRequest, JobKind, JobStatus


def conclude(session: Session, held: Claim, job: JobRow, outcome: Outcome) -> None:
    """Move the job to what its attempt has earned. Success wins over a request to cancel that came too late."""
    request = lifecycle.beat(session, held)
    if outcome.kind == "succeeded":
        if job.kind == JobKind.TRAIN:
            adapter = register_adapter(session, job, RunDir(Path(job.run_dir)).adapter)
            follow_up.after_training(session, job, adapter)
        lifecycle.finish(session, held, JobStatus.SUCCEEDED, result=outcome.result)
    elif request == CancelRequest.KEEP:
        reason, fix = keep_adapter(session, job)
        lifecycle.finish(session, held, JobStatus.CANCELLED, reason, fix)
    elif request == CancelRequest.CANCEL:
        lifecycle.finish(session, held, JobStatus.CANCELLED)
    elif outcome.kind == "failed" and outcome.cause == OUT_OF_MEMORY and (smaller := _halved(job)):
        _try_smaller(session, held, job, smaller)
    elif outcome.kind == "failed":
        lifecycle.finish(session, held, JobStatus.FAILED, outcome.reason, outcome.fix, outcome.result, outcome.cause, outcome.remedy)
    elif outcome.kind == "stopped":
        lifecycle.release(session, held)
    else:
        lifecycle.requeue(session, held, outcome.reason)


def _halved(job: JobRow) -> dict[str, int]:
    """The same steps from smaller batches, for a training that has not been given them before."""
    if job.kind != JobKind.TRAIN or job.is_halved:
        return {}
    return smaller_batch(JobConfig.model_validate(job.config))


def _try_smaller(session: Session, held: Claim, job: JobRow, smaller: dict[str, int]) -> None:
    run = RunDir(Path(job.run_dir))
    config = {**job.config, **smaller}
    text = "Memory ran out: once more with " + ", ".join(f"{key} {value}" for key, value in smaller.items()) + "."
    lifecycle.try_smaller(session, held, config, text)
    run.write_config(config)  # behind the fence; a crash before the commit makes the next attempt halve the same way
    with run.attempt(held.attempt).log.open("a", encoding="utf-8") as log:
        log.write(f"{text}\n")


def keep_adapter(session: Session, job: JobRow) -> tuple[str, str]:
    """Turn the last verified checkpoint into the job's adapter; (reason, fix) for the row."""
    adapter = None
    if job.run_dir:
        adapter = RunDir(Path(job.run_dir)).keep_checkpoint()
    if adapter is None:
        return "There was no checkpoint yet, so no adapter could be kept.", "Let it reach its first checkpoint, or lower save_steps."
    register_adapter(session, job, adapter)
    return "", ""


def register_adapter(session: Session, job: JobRow, path: Path) -> AdapterRow:
    """List the adapter of a job under the job's name."""
    values: dict[str, Any] = {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "sha256": sha256(path / "adapter_model.safetensors"),
    }
    adapter = session.scalar(select(AdapterRow).where(AdapterRow.job_id == job.id))
    if adapter is None:
        name = _adapter_name(session, job.name)
        adapter = AdapterRow(name=name, base_model=job.base_model, method=str(job.config.get("method", "")), job_id=job.id, **values)
        session.add(adapter)
    else:
        for key, value in values.items():
            setattr(adapter, key, value)
    session.flush()
    return adapter


def _adapter_name(session: Session, wanted: str) -> str:
    """The job's own name, as its launch has reserved it; a number behind it should it have been taken since."""
    name, number = wanted, 1
    while session.scalar(select(AdapterRow.id).where(AdapterRow.name == name)) is not None:
        number += 1
        name = f"{wanted}-{number}"
    return name
