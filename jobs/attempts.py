"""One attempt of a job: a child process behind jobs.executor, or for a light job a function in a thread.

An attempt beats, takes over what is reported, acts on what a person asks, and returns an Outcome.
"""

from __future__ import annotations

import functools
import importlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs import executor, sharing, slots
from jobs.config import JobConfig
from jobs.exporters.config import unfinished
from jobs.frozen import StoppedTrainer
from jobs.kinds import KINDS
from jobs.light import LightContext, LightJobStopped
from jobs.outcome import LOOK_AT_LOG, Outcome, judge
from jobs.rundir import Attempt, RunDir
from studio.catalogue import hardware, memory
from studio.catalogue.models import count_parameters
from studio.db import lifecycle
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobRow
from studio.engine.leases import RENEW_S
from studio.errors import StudioError
from studio.records import CancelRequest, JobKind

if TYPE_CHECKING:
    from jobs.runner import Runner

TICK_S = 0.25
BEAT_S = 0.5  # also how late a request to cancel is noticed
STOP_GRACE_S = 5.0  # from asking a child to killing it, while the worker itself has to end
PAUSE_GRACE_S = 30.0  # the same where every step is to be kept: the checkpoint comes after the batch that is being computed
GRACE_S = {CancelRequest.CANCEL: 8.0, CancelRequest.KEEP: PAUSE_GRACE_S, CancelRequest.PAUSE: PAUSE_GRACE_S}
UNLOAD_WAIT_S = 30.0
ROOM = 1.2  # times its prediction, free memory that is enough to take it without care

logger = logging.getLogger(__name__)


class ChildAttempt:
    """An attempt whose work is done by a child process on a run directory."""

    config: JobConfig | None = None  # of a training

    def __init__(self, runner: Runner, held: Claim, job: JobRow) -> None:
        self.runner = runner
        self.held = held
        self.job = job
        self.slot = runner.places.get(held) or slots.on_processor()
        self.run_dir = RunDir(Path(job.run_dir))
        self.files = self.run_dir.attempt(held.attempt)
        self.pulse = Pulse(runner, held)
        self._asking: threading.Thread | None = None

    def run(self) -> Outcome:
        raise NotImplementedError

    def ingest(self, session: Session) -> None:
        """Take over what the child has reported since the last time."""
        ingest_events(session, self.held, self.files)

    def _supervise(self, threads: int, warm: executor.WarmTrainers | None, spares_memory: bool = False) -> Outcome:
        program, visible = KINDS[self.job.kind].program, self.slot.visible
        child = executor.submit(self.run_dir, self.held.attempt, threads, warm, program, visible, spares_memory)
        try:
            with self.runner.db.write() as session:
                lifecycle.record_child(session, self.held, child.pid, child.born)
            return self._watch(child)
        finally:
            executor.close(child)

    def _watch(self, child: executor.Child) -> Outcome:
        asked_at: float | None = None
        stopped = StoppedTrainer(child)
        while (ended := executor.poll(child)) is None:
            request = self.pulse.beat(self.ingest)
            if asked_at is None and (request or self.runner.stopping.is_set()):
                asked_at = time.monotonic()
                executor.stop(child)
            if asked_at is None:
                stopped.look()
            elif time.monotonic() - asked_at > grace_s(request, self.runner.stopping.is_set()):
                executor.kill(child)
            time.sleep(TICK_S)
        return judge(ended, self.files, we_asked=asked_at is not None, config=self.config)

    def _ask_for_memory(self, needed: int, total: int) -> bool:
        """Wait for the engine a while; False where a person has meanwhile asked that the job does not go on."""
        self.pulse.renew = functools.partial(sharing.renew, self.runner.settings, self.job.name, needed)
        asking = threading.Thread(
            target=sharing.begin, args=(self.runner.settings, self.job.name, needed, total, self.slot.device.selector), daemon=True
        )
        self._asking = asking
        asking.start()
        deadline = time.monotonic() + UNLOAD_WAIT_S
        request: CancelRequest | None = None
        while asking.is_alive() and time.monotonic() < deadline and not (request or self.runner.stopping.is_set()):
            request = self.pulse.beat(self.ingest)
            asking.join(TICK_S)
        return not (request or self.runner.stopping.is_set())

    def _give_memory_back(self) -> None:
        """Tell the engine that it may take all memory again, behind a question that it has not answered yet."""
        self.pulse.renew = None
        if self._asking is not None and self._asking.is_alive():
            threading.Thread(target=self._give_memory_back_after, args=(self._asking,), daemon=True).start()
        else:
            sharing.end(self.runner.settings, self.job.name)

    def _give_memory_back_after(self, asking: threading.Thread) -> None:
        asking.join()
        sharing.end(self.runner.settings, self.job.name)


def grace_s(request: CancelRequest | None, is_stopping: bool) -> float:
    """Seconds from asking a child to end to killing it; a request that was taken back leaves a pause's."""
    if is_stopping:
        return STOP_GRACE_S
    return PAUSE_GRACE_S if request is None else GRACE_S[request]


class TrainingAttempt(ChildAttempt):
    """One attempt of a training, from making room for it to its exit."""

    def run(self) -> Outcome:
        config = self.config = JobConfig.model_validate(self.job.config)
        try:
            if not self._make_room(config):
                return Outcome("stopped")
            threads = config.num_threads or slots.threads(self.slot)
            return self._supervise(threads, self.runner.warm, self._is_short_of_memory(config))
        finally:
            self._give_memory_back()

    def _make_room(self, config: JobConfig) -> bool:
        """Have the engine give its memory back when both would take more than their share of the device. As `_ask_for_memory`."""
        try:
            needed = memory.predict_training_bytes(memory.model_config(Path(config.model_name_or_path)), config)
        except (OSError, ValueError, ZeroDivisionError):
            return True  # a model that can't be predicted: the trainer says what is wrong with it
        return self._ask_for_memory(needed, self.slot.device.memory_bytes)

    def _is_short_of_memory(self, config: JobConfig) -> bool:
        """Whether a training on the processor may need more than is free where it keeps freed memory for its next step."""
        if memory.device_of(config) != "cpu":
            return False
        try:
            most = memory.predict(memory.model_config(Path(config.model_name_or_path)), config, gives_back=False)
        except (OSError, ValueError, ZeroDivisionError):
            return False
        return (most.total + most.process) * ROOM > hardware.memory().free_bytes


class ExportAttempt(ChildAttempt):
    """One attempt of an export: it leaves at once when asked and leaves nothing half behind."""

    def run(self) -> Outcome:
        try:
            needed = 4 * count_parameters(Path(self.job.config["base_path"]))
        except StudioError as exc:  # the base has gone since the launch
            return Outcome("failed", exc.message, exc.fix)
        try:
            if not self._ask_for_memory(needed, self.slot.device.memory_bytes):
                return Outcome("stopped")
            return self._supervise(slots.threads(self.slot), None)
        finally:
            self._give_memory_back()
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
                request = self.pulse.beat(self.ingest)
                if request or self.runner.stopping.is_set():
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
        except LightJobStopped:
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
        with self.runner.db.write() as session:
            lifecycle.progress(session, self.held, step, max_steps, self._eta_s(step, max_steps))

    def _eta_s(self, step: int, max_steps: int) -> float | None:
        """From the steps of this attempt; None before the second."""
        done = step - (self._first or 0)
        if not done:
            return None
        return (time.monotonic() - self._begun) / done * (max_steps - step)


class Pulse:
    """The beat of a claim: often enough for the lease, seldom enough for the database."""

    def __init__(self, runner: Runner, held: Claim) -> None:
        self.runner = runner
        self.held = held
        self._next = 0.0
        self._request: CancelRequest | None = None
        self.renew: Callable[[], None] | None = None  # what the job was promised of the device
        self._renew_at = time.monotonic() + RENEW_S

    def beat(self, ingest: Callable[[Session], None]) -> CancelRequest | None:
        """Beat and ingest when it is time; what a person has asked, if anything. Raises LostClaimError."""
        if time.monotonic() >= self._next:
            try:
                with self.runner.db.write() as session:
                    ingest(session)
                    self._request = lifecycle.beat(session, self.held)
            except OperationalError as exc:  # a locked or full disk: the trainer goes on, and the next beat may get through
                logger.warning("Job %s: no beat (%s).", self.held.job_id, exc)
            self._next = time.monotonic() + BEAT_S
        if self.renew is not None and time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + RENEW_S
            threading.Thread(target=self.renew, name=f"renew-{self.held.job_id}", daemon=True).start()  # an engine may hang
        return self._request


ATTEMPTS: dict[str, type[ChildAttempt]] = {JobKind.TRAIN: TrainingAttempt, JobKind.EXPORT: ExportAttempt}


def begin(runner: Runner, held: Claim, job: JobRow) -> ChildAttempt | LightAttempt:
    """The attempt of a job by its kind."""
    kind = ATTEMPTS.get(job.kind, LightAttempt)
    return kind(runner, held, job)


def ingest_events(session: Session, held: Claim, files: Attempt) -> None:
    """Take over all that an attempt has reported behind the offset of its row. The row's: a transaction may have failed before."""
    offset = session.scalar(select(JobRow.event_offset).where(JobRow.id == held.job_id)) or 0
    while True:
        events, behind = files.read_events(offset)
        if behind == offset:
            return
        lifecycle.ingest(session, held, events, behind)
        offset = behind


def _light_job(kind: str) -> Callable[[LightContext], dict[str, Any]]:
    """The function that runs light jobs of this kind."""
    if kind not in KINDS or not KINDS[kind].function:
        raise StudioError(f"This version has no jobs of kind {kind!r}.", "Install the version that queued it.")
    module, _, name = KINDS[kind].function.partition(":")
    found: Callable[[LightContext], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return found
