"""Workers as real processes: bells that are lost or doubled, cancels, freezes, and workers that end in every way."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update

from jobs import executor, queue, warm
from jobs.outcome import judge
from jobs.reconcile import Reconciler
from jobs.rundir import RunDir
from jobs.runner import Runner
from studio import processes
from studio.compress.process import CompressorProcess
from studio.datasets.children import run_child
from studio.db import lifecycle
from studio.db.models import JobEventRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.services import Studio
from studio.settings import Settings
from tests.runs import make_run, open_store, submit
from tests.workers import is_importing, row, trainers, wait_for, wait_for_status, worker


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def hopeless(settings: Settings, name: str = "hopeless") -> RunDir:
    """A run that its trainer gives up in a second, before importing torch."""
    return make_run(settings.runs / name, model=Path("/nowhere"))


def reconciler(settings: Settings, db: Database) -> Reconciler:
    """One that watches and never runs a job itself."""
    return Reconciler(Runner(settings, db, "light"), notify=lambda: None, free_threads=lambda: 0)


# the bell


def test_a_job_whose_bell_was_lost_is_found_and_fails_with_its_reason(settings: Settings, db: Database) -> None:
    job_id = submit(db, hopeless(settings))
    with worker():
        job = wait_for_status(db, job_id, "FAILED")
    assert "is not in /nowhere" in job.reason and job.fix and job.slot is None
    assert (job.attempt, job.owner, job.lease_until, job.pid) == (1, None, None, None)


def test_twenty_bells_and_two_workers_run_a_job_once(settings: Settings, db: Database) -> None:
    job_id = submit(db, hopeless(settings))
    for _ in range(20):
        queue.notify(settings.queue_path, "gpu")
    with worker(), worker():
        wait_for_status(db, job_id, "FAILED")
        wait_for(lambda: queue.open_queue(settings.queue_path, "gpu").pending_count() == 0)
    assert row(db, job_id).attempt == 1


def test_a_queue_file_full_of_rubbish_loses_no_job(settings: Settings, db: Database) -> None:
    job_id = submit(db, hopeless(settings))
    settings.queue_path.write_bytes(b"rubbish" * 1000)
    with worker():
        wait_for_status(db, job_id, "FAILED")


def test_jobs_run_one_after_the_other_on_one_slot(settings: Settings, db: Database) -> None:
    jobs = [submit(db, hopeless(settings, name), name) for name in ("a", "b", "c")]
    with worker():
        ended = [wait_for_status(db, job_id, "FAILED") for job_id in jobs]
    for before, after in itertools.pairwise(ended):
        assert before.ended_at and after.started_at and before.ended_at <= after.started_at


def test_an_unknown_kind_of_light_job_fails_with_its_reason(settings: Settings, db: Database) -> None:
    with db.write() as session:
        job_id = lifecycle.submit(session, JobRow(kind="divination", queue="light", name="future")).id
    with worker("light"):
        assert "no jobs of kind 'divination'" in wait_for_status(db, job_id, "FAILED").reason


# the trainer's end


def test_a_killed_trainer_whose_exit_status_was_stolen_is_no_success(settings: Settings) -> None:
    """Regression: a wait() elsewhere takes the status, and Popen then reports 0."""
    run = hopeless(settings)
    child = executor.submit(run, 1, threads=1)
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    ended = wait_for(lambda: executor.poll(child))
    assert ended.code is None
    assert judge(ended, run.attempt(1), we_asked=False).kind == "lost"
    executor.close(child)


def test_a_zombie_trainer_of_a_dead_worker_does_not_hold_its_job(settings: Settings, db: Database) -> None:
    """Regression: a zombie counts as alive for psutil.pid_exists."""
    job_id = submit(db, hopeless(settings))
    zombie = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = processes.born(zombie.pid)
    assert born is not None
    host, boot, *_ = processes.owner_id().split(":")
    with db.write() as session:
        held = lifecycle.claim(session, job_id, f"{host}:{boot}:{2**22 + 1}:1.0", "device:0")
        assert held
        lifecycle.record_child(session, held, zombie.pid, born)
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    reconciler(settings, db).look()
    job = row(db, job_id)
    assert (job.status, job.lost) == ("QUEUED", 1)
    zombie.wait()


# listed here and not taken from the code: what is forgotten there has to be found
CANARIES = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "OAUTH_CLIENT_SECRET",
    "OPENAI_API_KEY",
    "STUDIO_API_KEYS",
    "STUDIO_DB_URL",
    "STUDIO_ENGINE_KEY",
    "STUDIO_TOKEN",
    "STUDIO_USERS",
]


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CANARIES:
        monkeypatch.setenv(name, f"canary-{name}")


def told_to(pid: int) -> set[str]:
    """Which canaries a process that runs was given."""
    environment = wait_for(lambda: psutil.Process(pid).environ())
    return {name for name in CANARIES if f"canary-{name}" in environment.values()}


@pytest.mark.parametrize("module", [executor.TRAINER, executor.EXPORTER])
def test_no_secret_reaches_what_works_on_a_run(settings: Settings, canaries: None, module: str) -> None:
    child = executor.submit(hopeless(settings), 1, threads=3, module=module)
    try:
        assert told_to(child.pid) == set() and psutil.Process(child.pid).environ()["OMP_NUM_THREADS"] == "3"
    finally:
        executor.close(child)


def test_no_secret_reaches_a_trainer_that_waits(canaries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "QUIET_S", -1.0)
    monkeypatch.setattr(warm, "SPARE_BYTES", 0)
    others = set(psutil.Process().children())  # of other tests
    ready = warm.ReadyTrainer(threads=1)
    ready.tend(is_quiet=True)
    try:
        (process,) = set(psutil.Process().children()) - others
        assert told_to(process.pid) == set()
    finally:
        ready.close()


def test_no_secret_reaches_a_child_that_reads_data(tmp_path: Path, canaries: None) -> None:
    seen: list[set[str]] = []
    others = set(psutil.Process().children())  # of other tests

    def pulse() -> None:
        seen.extend(told_to(child.pid) for child in set(psutil.Process().children()) - others)
        if seen:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_child("pdb", {}, tmp_path, pulse=pulse)  # waits for a command that never comes
    assert seen == [set()]


def test_no_secret_reaches_the_compressor(canaries: None, tmp_path: Path) -> None:
    compressor = CompressorProcess()
    process = compressor._running()
    try:
        assert told_to(process.pid) == set()
    finally:
        compressor.close()


def test_a_download_has_the_token_of_the_hub_and_no_other_secret(
    settings: Settings, canaries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    say_all = "import json, os; print(json.dumps({'error': {'message': ' '.join(os.environ.values()), 'fix': ''}}))"
    monkeypatch.setattr(processes, "module_command", lambda *_: [sys.executable, "-c", say_all])
    models = Studio.open(dataclasses.replace(settings, hub_offline=False)).models
    with pytest.raises(StudioError) as told:
        models.add("hub:somebody/something")
    assert [name for name in CANARIES if f"canary-{name}" in str(told.value)] == CANARIES[:3]


# cancelling


def test_a_trainer_that_is_asked_leaves_at_once(settings: Settings, db: Database) -> None:
    job_id = submit(db, make_run(settings.runs / "run"))
    with worker():
        wait_for(lambda: is_importing(db, job_id))
        with db.write() as session:
            lifecycle.cancel(session, job_id)
        wait_for_status(db, job_id, "CANCELLED", timeout=120)
        assert trainers(settings.runs) == []


@pytest.mark.long
def test_a_trainer_that_does_not_answer_is_killed(settings: Settings, db: Database) -> None:
    job_id = submit(db, make_run(settings.runs / "run"))
    with worker():
        wait_for(lambda: is_importing(db, job_id))
        (trainer,) = trainers(settings.runs)
        trainer.suspend()
        with db.write() as session:
            lifecycle.cancel(session, job_id)
        wait_for_status(db, job_id, "CANCELLED", timeout=120)
        assert trainers(settings.runs) == []


def test_a_cancelled_job_never_starts(settings: Settings, db: Database) -> None:
    job_id = submit(db, hopeless(settings))
    after = submit(db, hopeless(settings, "after"), "after", after_id=job_id)
    with db.write() as session:
        lifecycle.cancel(session, job_id)
    queue.notify(settings.queue_path, "gpu")
    with worker():
        assert "ended cancelled" in wait_for_status(db, after, "CANCELLED").reason
    assert row(db, job_id).attempt == 0
    with pytest.raises(StudioError), db.write() as session:
        lifecycle.cancel(session, job_id)


# the worker's end


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL", "stdin"])
def test_a_worker_that_ends_leaves_a_waiting_job_and_no_process(settings: Settings, db: Database, end: str) -> None:
    job_id = submit(db, make_run(settings.runs / "run"))
    with worker() as process:
        wait_for(lambda: is_importing(db, job_id))
        if end == "stdin":
            assert process.stdin
            process.stdin.close()
        else:
            process.send_signal(getattr(signal, end))
        process.wait(timeout=120)
        wait_for(lambda: not trainers(settings.runs), timeout=120)
    if end == "SIGKILL":
        assert row(db, job_id).status == "RUNNING"
        wait_for(lambda: reconciler(settings, db).look() or row(db, job_id).status == "QUEUED", timeout=120)  # at once, not after the lease
    job = row(db, job_id)
    assert (job.status, job.lost) == ("QUEUED", 1 if end == "SIGKILL" else 0)


def test_a_frozen_worker_loses_its_job_and_is_fenced_out_when_it_wakes(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LEASE_S", 2.0)
    job_id = submit(db, make_run(settings.runs / "run"))
    watcher = reconciler(settings, db)
    with worker() as frozen:
        wait_for(lambda: is_importing(db, job_id))
        os.kill(frozen.pid, signal.SIGSTOP)
        most = 0

        def is_taken_over() -> bool:
            nonlocal most
            most = max(most, len(trainers(settings.runs)))
            watcher.look()
            time.sleep(0.2)
            return row(db, job_id).status == "QUEUED"

        wait_for(is_taken_over, timeout=120)
        assert most == 1 and trainers(settings.runs) == []
        os.kill(frozen.pid, signal.SIGCONT)
        wait_for(lambda: row(db, job_id).attempt == 2)
        with db.read() as session:
            kinds = [event.kind for event in session.scalars(select(JobEventRow).order_by(JobEventRow.id))]
        assert kinds == ["submitted", "started", "lost", "started"]


def test_a_lease_written_by_a_clock_in_the_future_holds_nobody_up(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LEASE_S", 1.0)
    job_id = submit(db, hopeless(settings))
    with db.write() as session:
        assert lifecycle.claim(session, job_id, "another-machine:boot:1:1.0", "device:0")
        session.execute(update(JobRow).values(lease_until=time.time() + 10**6))
    watcher = reconciler(settings, db)
    watcher.look()
    assert row(db, job_id).status == "RUNNING"  # it may be alive, elsewhere
    wait_for(lambda: watcher.look() or row(db, job_id).status == "QUEUED", timeout=120)


def test_a_lease_that_moves_is_never_taken_whatever_time_it_says(settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LEASE_S", 0.5)
    job_id = submit(db, hopeless(settings))
    with db.write() as session:
        held = lifecycle.claim(session, job_id, "another-machine:boot:1:1.0", "device:0")
        assert held
    watcher = reconciler(settings, db)
    for beat in range(8):
        with db.write() as session:
            session.execute(update(JobRow).values(lease_until=float(beat)))  # long ago, by a clock that is wrong
        watcher.look()
        time.sleep(0.2)
    assert row(db, job_id).status == "RUNNING"


def test_a_worker_ends_within_seconds_when_idle(settings: Settings, db: Database) -> None:
    with worker("light") as process:
        wait_for(lambda: settings.queue_path.exists())
        time.sleep(1)
        process.terminate()
        assert process.wait(timeout=120) == 0
    assert not [p for p in psutil.Process().children() if p.pid == process.pid]
