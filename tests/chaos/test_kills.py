"""Kill -9 of trainers and workers while they train: the job succeeds, to the bit as if nothing had happened.

STUDIO_KILLS=10 kills the trainer ten times instead of three.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from jobs.rundir import sha256
from studio.db import lifecycle
from studio.db.models import AdapterRow, JobEventRow, JobRow, MetricRow
from studio.db.session import Database
from studio.records import ENDED
from studio.settings import Settings
from tests.runs import make_run, open_store, submit
from tests.workers import row, trainers, wait_for, wait_for_status, worker

KILLS = int(os.environ.get("STUDIO_KILLS", "3"))
OPTIONS = {"rows": 4 * max(6, KILLS + 3), "save_steps": 1, "eval_steps": 4}  # enough steps for every kill to meet a new one


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def curve(db: Database, job_id: str) -> dict[tuple[str, int], tuple[float, int | None]]:
    with db.read() as session:
        points = session.scalars(select(MetricRow).where(MetricRow.job_id == job_id, MetricRow.kind.in_(("train", "eval"))))
        return {(p.kind, p.step): (p.values["loss"], p.values.get("tokens")) for p in points}


def adapter_sha256(db: Database, job_id: str) -> str:
    with db.read() as session:
        adapter = session.scalars(select(AdapterRow).where(AdapterRow.job_id == job_id)).one()
    return adapter.sha256


def training(db: Database, job_id: str, attempt: int, above: int) -> JobRow:
    """The job once this attempt of it has a trainer and more than `above` of its steps are known.

    A killed trainer may have told more steps than were read before it died: that they rise does not say that another one trains.
    """

    def seen() -> JobRow | None:
        job = row(db, job_id)
        assert job.status in ("QUEUED", "RUNNING"), (job.status, job.reason)
        return job if job.status == "RUNNING" and job.attempt == attempt and job.pid and (job.step or 0) > above else None

    job = wait_for(seen)
    assert job
    return job


@pytest.mark.long
def test_a_job_survives_kills_of_trainer_and_worker_to_the_bit(settings: Settings, db: Database) -> None:
    options = {**OPTIONS, "recipe": "qlora-sft"}
    unbroken = submit(db, make_run(settings.runs / "unbroken", **options), "unbroken")
    with worker():
        wait_for_status(db, unbroken, *ENDED)
        assert row(db, unbroken).status == "SUCCEEDED"
        killed = submit(db, make_run(settings.runs / "killed", **options), "killed")
        step = 0
        for attempt in range(1, KILLS + 1):
            job = training(db, killed, attempt, step)
            os.kill(job.pid or 0, signal.SIGKILL)
            step = job.step or 0
        job = training(db, killed, KILLS + 1, step)
        os.kill(int((job.owner or "").split(":")[2]), signal.SIGKILL)
        wait_for(lambda: not trainers(settings.runs))
    with worker():
        job = wait_for_status(db, killed, *ENDED)
    assert (job.status, job.reason) == ("SUCCEEDED", "")
    assert job.attempt == KILLS + 2
    assert adapter_sha256(db, killed) == adapter_sha256(db, unbroken) == sha256(settings.runs / "killed/adapter/adapter_model.safetensors")
    assert curve(db, killed) == curve(db, unbroken)
    with db.read() as session:
        lost = session.scalars(select(JobEventRow).where(JobEventRow.job_id == killed, JobEventRow.kind == "lost")).all()
    assert len(lost) == KILLS + 1
    assert trainers(settings.runs) == []


@pytest.mark.long
def test_a_cancelled_training_keeps_the_adapter_of_its_last_checkpoint(settings: Settings, db: Database) -> None:
    job_id = submit(db, make_run(settings.runs / "run", num_train_epochs=200, save_steps=1, eval_steps=10_000, recipe="lora-sft"))
    with worker() as process:
        wait_for(lambda: row(db, job_id).checkpoint_step >= 2)
        process.terminate()  # in good order: the job goes back with a checkpoint of its last step
        assert process.wait(timeout=120) == 0
    job = row(db, job_id)
    assert (job.status, job.lost) == ("QUEUED", 0) and job.checkpoint_step == job.step
    assert trainers(settings.runs) == []
    with worker():
        wait_for(lambda: (row(db, job_id).step or 0) > (job.step or 0))
        with db.write() as session:
            lifecycle.cancel(session, job_id, keep=True)
        ended = wait_for_status(db, job_id, "CANCELLED", timeout=120)
    assert ended.reason == ""
    with db.read() as session:
        adapter = session.scalars(select(AdapterRow)).one()
    assert (adapter.name, adapter.base_model, adapter.method) == ("first", "starter", "lora")
    assert sha256(settings.runs / "run/adapter/adapter_model.safetensors") == adapter.sha256
