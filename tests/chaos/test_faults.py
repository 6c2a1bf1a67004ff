"""Faults around a worker, one by one: a frozen one beside another, a database that is locked, cancels that nobody hears."""

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from jobs.rundir import RunDir, checkpoint_step
from studio import processes
from studio.db import lifecycle
from studio.db.models import JobEventRow
from studio.db.session import Database
from studio.records import ENDED
from studio.settings import Settings
from tests.chaos import stand_in
from tests.chaos.fast_worker import LEASE_S
from tests.runs import make_run, open_store, submit
from tests.workers import row, trainers, wait_for, wait_for_status, worker

CANCELS = int(os.environ.get("STUDIO_CANCELS", "0"))
ENDLESS: dict[str, Any] = {"recipe": "qlora-sft", "num_train_epochs": 1000, "save_steps": 2, "eval_steps": 100_000}
FAST = "tests.chaos.fast_worker"


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def check_adapter(db: Database, job_id: str, steps: int) -> None:
    job = row(db, job_id)
    assert (job.status, job.reason) == ("SUCCEEDED", "")
    assert (RunDir(Path(job.run_dir)).adapter / stand_in.WEIGHTS).read_bytes() == stand_in.chain(steps)
    assert not (Path(job.run_dir) / "doubled").exists()


def kinds(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        return [event.kind for event in session.scalars(select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.id))]


@pytest.mark.long
def test_a_frozen_trainer_is_woken_and_the_second_time_replaced(settings: Settings, db: Database) -> None:
    job_id = submit(db, stand_in.make(settings.runs / "run", steps=50, step_s=0.1))
    with worker(module=FAST):
        wait_for(lambda: (row(db, job_id).step or 0) >= 3)
        for _ in range(2):
            (trainer,) = trainers(settings.runs)
            trainer.suspend()
            wait_for(lambda: processes.is_stopped(row(db, job_id).pid or 0))
            wait_for(lambda: not processes.is_stopped(row(db, job_id).pid or 0), timeout=LEASE_S + 120)
        wait_for_status(db, job_id, "SUCCEEDED")
    assert row(db, job_id).attempt == 2
    check_adapter(db, job_id, 50)


def test_a_second_worker_takes_over_from_a_frozen_one(settings: Settings, db: Database) -> None:
    job_id = submit(db, stand_in.make(settings.runs / "run", steps=40, step_s=0.1))
    with worker(module=FAST) as first:
        wait_for(lambda: (row(db, job_id).step or 0) >= 3)
        with worker(module=FAST):
            first.send_signal(signal.SIGSTOP)
            frozen, most = time.monotonic(), 0
            while row(db, job_id).attempt == 1:
                most = max(most, len(trainers(settings.runs)))
                assert time.monotonic() - frozen < LEASE_S + 120
                time.sleep(0.05)
            assert most <= 1
            first.send_signal(signal.SIGCONT)
            wait_for_status(db, job_id, *ENDED)
    check_adapter(db, job_id, 40)
    assert kinds(db, job_id).count("started") == 2


@pytest.mark.long
def test_a_database_that_is_locked_for_ten_seconds_costs_nothing(settings: Settings, db: Database) -> None:
    running = submit(db, stand_in.make(settings.runs / "running", steps=40, step_s=0.1), "running")
    waiting = submit(db, stand_in.make(settings.runs / "waiting", steps=4), "waiting")
    with worker(module=FAST):
        wait_for(lambda: (row(db, running).step or 0) >= 3)
        assert db.path
        other = sqlite3.connect(db.path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(10)
        other.execute("COMMIT")
        other.close()
        for job_id in (running, waiting):
            wait_for_status(db, job_id, *ENDED)
    check_adapter(db, running, 40)
    check_adapter(db, waiting, 4)
    assert kinds(db, running).count("started") == kinds(db, waiting).count("started") == 1


@pytest.mark.long
def test_cancelled_trainers_are_gone_in_time_with_their_memory_and_what_they_learned_is_kept(
    settings: Settings, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every other one hangs. STUDIO_CANCELS=50 cancels fifty real trainings instead of five stand-ins, and prints the times."""
    took: dict[bool, list[float]] = {False: [], True: []}
    sizes = []
    with worker(module="jobs.worker" if CANCELS else FAST) as process:
        for number in range(CANCELS or 5):
            path, hangs = settings.runs / str(number), number % 2 == 1
            run = make_run(path, **ENDLESS) if CANCELS else stand_in.make(path, steps=1000, step_s=0.02)
            took[hangs].append(cancel_one(settings, db, submit(db, run, f"job-{number}"), hangs))
            sizes.append(psutil.Process(process.pid).memory_info().rss)
    with capsys.disabled():
        print(
            f"\nCancelled: answering {spread(took[False])} s, hung {spread(took[True])} s; worker {sizes[0] >> 20} to {sizes[-1] >> 20} MiB"
        )
    if CANCELS:  # `make chaos`, which has the machine to itself
        assert max(took[False]) < 5 and max(took[True]) < 12
    assert sizes[-1] - sizes[1] < 32 << 20  # the worker keeps nothing of those it has ended


def cancel_one(settings: Settings, db: Database, job_id: str, hangs: bool) -> float:
    """Seconds from the wish to cancel a training in the middle until none of its processes is left; its adapter is checked."""
    wait_for(lambda: row(db, job_id).checkpoint_step >= 2)
    (trainer,) = trainers(settings.runs)
    family = [trainer, *trainer.children(recursive=True)]
    if hangs:
        trainer.suspend()
    with db.write() as session:
        lifecycle.cancel(session, job_id, keep=True)
    begun = time.monotonic()
    wait_for(lambda: not any(runs(member) for member in family), timeout=120)
    taken = time.monotonic() - begun
    job = wait_for_status(db, job_id, "CANCELLED", timeout=120)
    assert job.reason == "" and trainers(settings.runs) == []
    run = RunDir(Path(job.run_dir))
    checkpoint, damaged = run.last_verified_checkpoint()
    # a checkpoint whose trainer was frozen before it could report it is one too
    assert checkpoint and damaged == [] and checkpoint_step(checkpoint) >= job.checkpoint_step
    kept = {file.name: file.read_bytes() for file in (checkpoint / "adapter").iterdir()}
    assert kept[stand_in.WEIGHTS] and {file.name: file.read_bytes() for file in run.adapter.iterdir()} == kept
    return taken


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} (at most {max(seconds):.2f}, {len(seconds)} times)"


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "stdin"])
def test_a_trainer_that_is_kept_ready_ends_with_its_worker(settings: Settings, db: Database, end: str) -> None:
    with worker(module=FAST) as process:
        ready = wait_for(lambda: psutil.Process(process.pid).children())
        if end == "stdin":
            assert process.stdin
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, end))
        process.wait(timeout=120)
        wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in ready), timeout=120)


def test_a_trainer_that_is_kept_ready_trains_one_job_and_dies_of_a_kill_as_any_other(settings: Settings, db: Database) -> None:
    with worker(module=FAST) as process:
        (ready,) = wait_for(lambda: psutil.Process(process.pid).children())
        wait_for(lambda: ready.num_threads() == 1)  # waits; its imports are done
        job_id = submit(db, stand_in.make(settings.runs / "run", steps=40, step_s=0.1))
        assert wait_for(lambda: row(db, job_id).pid) == ready.pid
        wait_for(lambda: (row(db, job_id).step or 0) >= 3)
        (another,) = wait_for(lambda: [child for child in psutil.Process(process.pid).children() if child.pid != ready.pid])
        ready.kill()
        assert wait_for(lambda: row(db, job_id).pid not in (None, ready.pid) and row(db, job_id).pid) == another.pid
        wait_for_status(db, job_id, *ENDED)
    check_adapter(db, job_id, 40)
    log = RunDir(settings.runs / "run").attempt(1).path
    assert not (log / "ballast").exists() or row(db, job_id).attempt == 2
