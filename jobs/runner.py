"""Run one job to its end: claim, start, beat, take over what it reports, cancel, and write down what became of it.

A training is a child process behind jobs.executor; a light job is a function in a thread. Knows the database, and nothing
of how the bell rings.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs import executor, follow_up, sharing
from jobs.config import JobConfig
from jobs.exporters.config import unfinished
from jobs.frozen import Frost
from jobs.light import LightContext, Stopped
from jobs.outcome import LOOK_AT_LOG, Outcome, judge
from jobs.rundir import Attempt, RunDir, sha256
from jobs.trainers.failures import OUT_OF_MEMORY, smaller_batch
from studio import processes
from studio.catalogue import hardware, memory
from studio.catalogue.models import count_parameters
from studio.db import lifecycle
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import AdapterRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.settings import Settings

SLOT = "device:0"  # one training at a time on the device; the index of the table enforces it
TICK_S = 0.25
BEAT_S = 0.5  # also how late a wish to cancel is heard
CANCEL_GRACE_S = 8.0  # from asking a trainer to killing it
PAUSE_GRACE_S = 30.0  # the same for a pause, which is for keeping every step: the checkpoint comes after the step
STOP_GRACE_S = 5.0  # the same while the worker itself has to end
UNLOAD_WAIT_S = 30.0
ENDING_TRIES = 5

logger = logging.getLogger(__name__)


class Runner:
    """Runs jobs of one queue in the threads that call `run`."""

    def __init__(self, settings: Settings, db: Database, queue: str) -> None:
        self.settings = settings
        self.db = db
        self.queue = queue
        self.slot = SLOT if queue == "gpu" else None
        self.owner = processes.owner_id()
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # held from claiming until the claim is in `active`
        self.active: set[Claim] = set()
        self.ready: executor.Ready | None = None  # a worker that keeps trainers ready says so here
        self.without = () if settings.engine_url else (lifecycle.REPORT,)  # nobody asked for a report: it waits for an engine to ask

    def run(self, _job_id: str = "") -> None:
        """The bell has rung: run what may run, one job after the other. Which job rang does not matter; the rows say what is next."""
        while not self.stopping.is_set() and (held := self._claim_next()) is not None:
            try:
                self._supervise(held)
            except LostClaimError:
                logger.warning("Job %s, attempt %s was taken over by another worker.", held.job_id, held.attempt)
            except Exception:  # the edge of this thread: the job must not stay behind, and the worker goes on
                logger.exception("Job %s, attempt %s: the worker failed.", held.job_id, held.attempt)
                with suppress(LostClaimError, OperationalError), self.db.write() as session:
                    lifecycle.requeue(session, held, "the worker had an error, which its log describes")
            finally:
                with self.lock:
                    self.active.discard(held)

    def _claim_next(self) -> Claim | None:
        with self.lock:
            with self.db.write() as session:
                if self.slot is not None and not lifecycle.slot_is_free(session, self.slot):
                    return None
                waiting = lifecycle.claimable(session, self.queue, without=self.without)
                claims = (lifecycle.claim(session, job_id, self.owner, self.slot) for job_id in waiting)
                held = next((claim for claim in claims if claim is not None), None)
            if held is not None:
                self.active.add(held)
        return held

    def _supervise(self, held: Claim) -> None:
        with self.db.read() as session:
            job = session.get_one(JobRow, held.job_id)
        logger.info("Job %s (%s), attempt %s begins.", job.name, job.id, held.attempt)
        attempt = ATTEMPTS.get(job.kind, LightAttempt)(self, held, job)
        outcome = attempt.run()
        self._conclude(held, job, outcome, attempt.ingest)
        logger.info("Job %s (%s), attempt %s: %s %s", job.name, job.id, held.attempt, outcome.kind, outcome.reason)

    def _conclude(self, held: Claim, job: JobRow, outcome: Outcome, ingest: Callable[[Session], None]) -> None:
        """Write the end of the attempt; a database that is busy gets several tries."""
        for left in reversed(range(ENDING_TRIES)):
            try:
                with self.db.write() as session:
                    ingest(session)
                    conclude(session, held, job, outcome)
                return
            except OperationalError:
                if not left:
                    raise
                time.sleep(1.0)


class TrainingAttempt:
    """One attempt of a training, from making room for it to its exit."""

    def __init__(self, runner: Runner, held: Claim, job: JobRow) -> None:
        self.runner = runner
        self.held = held
        self.job = job
        self.run_dir = RunDir(Path(job.run_dir))
        self.files = self.run_dir.attempt(held.attempt)
        self.pulse = Pulse(runner, held)
        self.config: JobConfig | None = JobConfig.model_validate(job.config)
        self._asking: threading.Thread | None = None

    def run(self) -> Outcome:
        assert self.config is not None
        try:
            if not self._make_room(self.config):
                return Outcome("stopped")
            return self._supervise(self.config.num_threads or hardware.thread_budget("trainer"), self.runner.ready, executor.TRAINER)
        finally:
            self._give_room_back()

    def _supervise(self, threads: int, ready: executor.Ready | None, module: str) -> Outcome:
        child = executor.submit(self.run_dir, self.held.attempt, threads, ready, module)
        try:
            with self.runner.db.write() as session:
                lifecycle.record_child(session, self.held, child.pid, child.born)
            return self._watch(child)
        finally:
            executor.close(child)

    def _watch(self, child: executor.Child) -> Outcome:
        asked_at: float | None = None
        frost = Frost(child)
        while (ended := executor.poll(child)) is None:
            wish = self.pulse.beat(self.ingest)
            if (wish or self.runner.stopping.is_set()) and asked_at is None:
                asked_at = time.monotonic()
                executor.stop(child)
            if asked_at is not None and time.monotonic() - asked_at > self._grace(wish):
                executor.kill(child)
            elif asked_at is None:
                frost.look()
            time.sleep(TICK_S)
        return judge(ended, self.files, we_asked=asked_at is not None, config=self.config)

    def _grace(self, wish: str | None) -> float:
        if self.runner.stopping.is_set():
            return STOP_GRACE_S
        return CANCEL_GRACE_S if wish in ("cancel", "keep") else PAUSE_GRACE_S

    def ingest(self, session: Session) -> None:
        """Take over what the trainer has reported since the last time."""
        ingest_events(session, self.held, self.files)

    def _make_room(self, config: JobConfig) -> bool:
        """Have the engine give its memory back when both would take more than their share of the device. As `_ask_for_memory`."""
        try:
            needed = memory.predict_training_bytes(memory.model_config(Path(config.model_name_or_path)), config)
        except (OSError, ValueError, ZeroDivisionError):
            return True  # a model that can't be predicted: the trainer says what is wrong with it
        total = hardware.memory().total_bytes if config.device == "cpu" else hardware.devices()[0].memory_bytes
        return self._ask_for_memory(needed, total)

    def _ask_for_memory(self, needed: int, total: int) -> bool:
        """Wait for the engine a while; False where somebody has meanwhile wished that the job does not go on."""
        asking = threading.Thread(target=sharing.begin, args=(self.runner.settings, self.job.name, needed, total), daemon=True)
        self._asking = asking
        asking.start()
        deadline, wish = time.monotonic() + UNLOAD_WAIT_S, None
        while asking.is_alive() and time.monotonic() < deadline and not (wish or self.runner.stopping.is_set()):
            wish = self.pulse.beat(self.ingest)
            asking.join(TICK_S)
        return not (wish or self.runner.stopping.is_set())

    def _give_room_back(self) -> None:
        """Tell the engine that it may take all memory again; an engine that has not even answered the first question is told behind it."""
        if self._asking is not None and self._asking.is_alive():
            threading.Thread(target=self._give_room_back_after, args=(self._asking,), daemon=True).start()
        else:
            sharing.end(self.runner.settings, self.job.name)

    def _give_room_back_after(self, asking: threading.Thread) -> None:
        asking.join()
        sharing.end(self.runner.settings, self.job.name)


class ExportAttempt(TrainingAttempt):
    """One attempt of an export: a child like a trainer, that leaves at once when asked and leaves nothing half behind."""

    def __init__(self, runner: Runner, held: Claim, job: JobRow) -> None:
        self.runner, self.held, self.job = runner, held, job
        self.run_dir = RunDir(Path(job.run_dir))
        self.files = self.run_dir.attempt(held.attempt)
        self.pulse = Pulse(runner, held)
        self.config = None
        self._asking = None

    def run(self) -> Outcome:
        try:
            needed = 4 * count_parameters(Path(self.job.config["base_path"]))
        except StudioError as exc:  # the base has gone since the launch
            return Outcome("failed", exc.message, exc.fix)
        try:
            if not self._ask_for_memory(needed, hardware.devices()[0].memory_bytes):
                return Outcome("stopped")
            return self._supervise(hardware.thread_budget("trainer"), None, executor.EXPORTER)
        finally:
            self._give_room_back()
            shutil.rmtree(unfinished(Path(self.job.config["to"]), self.run_dir), ignore_errors=True)


class LightAttempt:
    """One attempt of a light job: a function that is asked to stop, in a thread of its own."""

    def __init__(self, runner: Runner, held: Claim, job: JobRow) -> None:
        self.runner = runner
        self.held = held
        self.job = job
        self.pulse = Pulse(runner, held)
        self._stop = threading.Event()
        self._begun = time.monotonic()
        self._first: int | None = None
        self._outcome: Outcome | None = None

    def run(self) -> Outcome:
        work = threading.Thread(target=self._work, name=f"job-{self.held.job_id}", daemon=True)
        work.start()
        asked_at: float | None = None
        try:
            while work.is_alive():
                wish = self.pulse.beat(self.ingest)
                if wish or self.runner.stopping.is_set():
                    self._stop.set()
                    asked_at = asked_at or time.monotonic()
                    if time.monotonic() - asked_at > STOP_GRACE_S:
                        return Outcome("stopped")
                work.join(TICK_S)
        finally:
            self._stop.set()
        return self._outcome or Outcome("failed", "The job ended without a result.", LOOK_AT_LOG)

    def ingest(self, session: Session) -> None:
        """A light job reports by itself."""

    def _work(self) -> None:
        context = LightContext(
            settings=self.runner.settings,
            db=self.runner.db,
            job_id=self.job.id,
            attempt=self.held.attempt,
            config=self.job.config,
            stop_requested=self._stop.is_set,
            progress=self._progress,
        )
        try:
            self._outcome = Outcome("succeeded", result=_light_job(self.job.kind)(context))
        except Stopped:
            self._outcome = Outcome("stopped")
        except StudioError as exc:
            self._outcome = Outcome("failed", exc.message, exc.fix)
        except LostClaimError:
            self._outcome = Outcome("lost")
        except Exception as exc:  # the edge of this thread: the reason belongs on the row
            logger.exception("Light job %s failed.", self.job.id)
            reason = f"The job ended with an error: {type(exc).__name__}: {exc}"
            self._outcome = Outcome("failed", reason, "The worker's log has the details.")

    def _progress(self, step: int, max_steps: int) -> None:
        if self._first is None:
            self._first, self._begun = step, time.monotonic()
        done = step - self._first
        eta = (time.monotonic() - self._begun) / done * (max_steps - step) if done else None
        with self.runner.db.write() as session:
            lifecycle.progress(session, self.held, step, max_steps, eta)


class Pulse:
    """The beat of a claim: often enough for the lease, seldom enough for the database."""

    def __init__(self, runner: Runner, held: Claim) -> None:
        self.runner = runner
        self.held = held
        self._next = 0.0
        self._wish: str | None = None

    def beat(self, ingest: Callable[[Session], None]) -> str | None:
        """Beat and ingest when it is time; the wish to cancel, if any. Raises LostClaimError."""
        if time.monotonic() >= self._next:
            try:
                with self.runner.db.write() as session:
                    ingest(session)
                    self._wish = lifecycle.beat(session, self.held)
            except OperationalError as exc:  # a locked or full disk: the trainer goes on, and the next beat may get through
                logger.warning("Job %s: no beat (%s).", self.held.job_id, exc)
            self._next = time.monotonic() + BEAT_S
        return self._wish


ATTEMPTS: dict[str, type[TrainingAttempt | LightAttempt]] = {"train": TrainingAttempt, "export": ExportAttempt}


def ingest_events(session: Session, held: Claim, files: Attempt) -> None:
    """Take over all that an attempt has reported behind the offset of its row. The row's: a transaction may have failed before."""
    offset = session.scalar(select(JobRow.event_offset).where(JobRow.id == held.job_id)) or 0
    while True:
        events, behind = files.read_events(offset)
        if behind == offset:
            return
        lifecycle.ingest(session, held, events, behind)
        offset = behind


def conclude(session: Session, held: Claim, job: JobRow, outcome: Outcome) -> None:
    """Move the job to what its attempt has earned. Success wins over a wish to cancel that came too late."""
    wish = lifecycle.beat(session, held)
    if outcome.kind == "succeeded":
        if job.kind == "train":
            adapter = register_adapter(session, job, RunDir(Path(job.run_dir)).adapter)
            follow_up.after_training(session, job, adapter)
        lifecycle.finish(session, held, "SUCCEEDED", result=outcome.result)
    elif wish in ("cancel", "keep"):
        reason, fix = keep_adapter(session, job) if wish == "keep" else ("", "")
        lifecycle.finish(session, held, "CANCELLED", reason, fix)
    elif outcome.kind == "failed" and outcome.cause == OUT_OF_MEMORY and (smaller := _halved(job)):
        _try_smaller(session, held, job, smaller)
    elif outcome.kind == "failed":
        lifecycle.finish(session, held, "FAILED", outcome.reason, outcome.fix, outcome.result, outcome.cause, outcome.remedy)
    elif outcome.kind == "stopped":
        lifecycle.release(session, held)
    else:
        lifecycle.requeue(session, held, outcome.reason)


def _halved(job: JobRow) -> dict[str, int]:
    """The same steps from smaller batches, for a training that has not been given them before."""
    if job.kind != "train" or job.is_halved:
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
    adapter = RunDir(Path(job.run_dir)).keep_checkpoint() if job.run_dir else None
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
        name = _free_name(session, job.name)
        adapter = AdapterRow(name=name, base_model=job.base_model, method=str(job.config.get("method", "")), job_id=job.id, **values)
        session.add(adapter)
    else:
        for key, value in values.items():
            setattr(adapter, key, value)
    session.flush()
    return adapter


def _free_name(session: Session, wanted: str) -> str:
    """The job's own name, as its launch has reserved it; a number behind it should somebody have taken it since."""
    name, number = wanted, 1
    while session.scalar(select(AdapterRow.id).where(AdapterRow.name == name)) is not None:
        number += 1
        name = f"{wanted}-{number}"
    return name


def _light_job(kind: str) -> Callable[[LightContext], dict[str, Any]]:
    if kind == "compare":
        from jobs import compare

        return compare.run
    if kind == "judge":
        from jobs import judge

        return judge.run
    if kind == lifecycle.REPORT:
        from jobs import report

        return report.run
    if kind in ("compress-sweep", "compress-data"):
        from jobs import compress

        return compress.sweep if kind == "compress-sweep" else compress.data
    raise StudioError(f"This version knows no jobs of kind {kind!r}.", "Install the version that queued it.")
