"""Claim jobs of one queue and see each to its end: start its attempt, and write down what became of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from jobs import attempts, executor, kinds, slots
from jobs.conclusion import conclude
from jobs.outcome import Outcome
from jobs.slots import Slot
from studio import processes
from studio.db import lifecycle, queue_order
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobRow
from studio.db.session import Database
from studio.records import JobKind, QueueName
from studio.settings import Settings

ENDING_TRIES = 5
MOST_WAITING = 200  # jobs that are looked at for one that a free place can take

logger = logging.getLogger(__name__)


def has_room(session: Session, places: Sequence[Slot]) -> bool:
    """Whether one of the places is free, whoever has started the jobs on the others; where none is needed there is room."""
    return not places or not {slot.name for slot in places} <= queue_order.taken_slots(session)


class Runner:
    """Runs jobs of one queue in the threads that call `run`."""

    def __init__(self, settings: Settings, db: Database, queue: str) -> None:
        self.settings = settings
        self.db = db
        self.queue = queue
        self.computes = queue == QueueName.GPU  # else its jobs need no place on a device
        self.owner = processes.owner_id()
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # held from claiming until the claim is in `active`
        self.active: set[Claim] = set()
        self.places: dict[Claim, Slot] = {}  # of those that compute
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
                    self.places.pop(held, None)

    def _claim_next(self) -> Claim | None:
        places = self.slots()  # before the transaction: a driver may take its time
        with self.lock:
            with self.db.write() as session:
                if not has_room(session, places):
                    return None
                waiting = queue_order.claimable(session, self.queue, MOST_WAITING, self.without)
                claims = (self._claim(session, job_id, places) for job_id in waiting)
                held = next((claim for claim in claims if claim is not None), None)
            if held is not None:
                self.active.add(held)
        return held

    def _claim(self, session: Session, job_id: str, places: Sequence[Slot]) -> Claim | None:
        """None where no free place takes the job, or somebody else has it."""
        if not self.computes:
            return lifecycle.claim(session, job_id, self.owner, None)
        job = session.get_one(JobRow, job_id)
        slot = slots.place(job.kind, job.config, places, queue_order.taken_slots(session))
        if slot is None:
            return None
        held = lifecycle.claim(session, job_id, self.owner, slot.name)
        if held is not None:
            self.places[held] = slot
        return held

    def slots(self) -> list[Slot]:
        """Places for the jobs of this queue; none where its jobs need none."""
        if not self.computes:
            return []
        return slots.slots()

    def next_slot(self) -> Slot:
        """The place that the next job takes, as far as that can be known."""
        places = slots.slots()
        with self.db.read() as session:
            taken = queue_order.taken_slots(session)
        return slots.place(JobKind.TRAIN, {}, places, taken) or places[0]

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
