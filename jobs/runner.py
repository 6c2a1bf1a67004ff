"""Claim jobs of one queue and see each to its end: start its attempt, and write down what became of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs import attempts, executor, kinds
from jobs.conclusion import conclude
from jobs.outcome import Outcome
from studio import processes
from studio.db import lifecycle, queue_order
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobRow
from studio.db.session import Database
from studio.records import JobKind, QueueName
from studio.settings import Settings

SLOT = "device:0"  # one training at a time on the device; the index of the table enforces it
ENDING_TRIES = 5

logger = logging.getLogger(__name__)


class Runner:
    """Runs jobs of one queue in the threads that call `run`."""

    def __init__(self, settings: Settings, db: Database, queue: str) -> None:
        self.settings = settings
        self.db = db
        self.queue = queue
        self.slot = SLOT if queue == QueueName.GPU else None
        self.owner = processes.owner_id()
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # held from claiming until the claim is in `active`
        self.active: set[Claim] = set()
        self.warm: executor.WarmTrainers | None = None  # set by a worker that keeps trainers ready
        self.without: tuple[JobKind, ...] = ()
        if not settings.engine_url:
            self.without = tuple(entry.kind for entry in kinds.ENTRIES if entry.waits_for_engine)

    def run(self) -> None:
        """Run what may run, one job after the other. The rows say what is next."""
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
                if self.slot is not None and not queue_order.slot_is_free(session, self.slot):
                    return None
                waiting = queue_order.claimable(session, self.queue, without=self.without)
                claims = (lifecycle.claim(session, job_id, self.owner, self.slot) for job_id in waiting)
                held = next((claim for claim in claims if claim is not None), None)
            if held is not None:
                self.active.add(held)
        return held

    def _supervise(self, held: Claim) -> None:
        with self.db.read() as session:
            job = session.get_one(JobRow, held.job_id)
        logger.info("Job %s (%s), attempt %s begins.", job.name, job.id, held.attempt)
        attempt = attempts.begin(self, held, job)
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
