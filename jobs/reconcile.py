"""Find what fell through: jobs whose worker is gone or silent, waiting jobs whose notification was lost.

Every worker does this at its start and every second. Silence is measured by the watcher's own steady clock: a lease counts
as expired when it has not moved for long enough, whatever time stands in it, so a clock that is set neither loses nor
steals a job. Takes over rows of any queue; notifies only its own.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import OperationalError

from jobs import sharing
from jobs.attempts import ingest_events
from jobs.conclusion import keep_adapter
from jobs.rundir import RunDir
from jobs.runner import Runner, has_room
from studio import processes
from studio.db import job_rows, lifecycle, queue_order
from studio.db.lifecycle import Claim, LostClaimError
from studio.db.models import JobRow
from studio.records import CancelRequest, JobStatus

ORPHAN_GRACE_S = 6.0  # an orphaned trainer ends by itself after a checkpoint; then it is killed
MAX_LOOK_S = 3.0  # time between two looks counts at most so much: a watcher that was frozen has seen nothing

logger = logging.getLogger(__name__)


@dataclass
class Watched:
    """What is known of a claim of somebody else: its lease as last seen, and for how long it has stood still."""

    lease: float | None
    still_s: float = 0.0
    looked_at: float = 0.0
    asked_at: float | None = None  # when its orphan was asked to end


class Reconciler:
    """`notify` has one thread of this worker look for work; `free_threads` says how many jobs it could take."""

    def __init__(self, runner: Runner, notify: Callable[[], None], free_threads: Callable[[], int]) -> None:
        self.runner = runner
        self.notify = notify
        self.free_threads = free_threads
        self._watched: dict[Claim, Watched] = {}

    def look(self) -> None:
        """One round. Never raises for a busy database: the next round comes soon."""
        try:
            self._take_over()
            self._keep()
            self._wake()
        except OperationalError as exc:
            logger.warning("The database could not be looked at (%s).", exc)

    def _take_over(self) -> None:
        with self.runner.lock, self.runner.db.read() as session:
            jobs = job_rows.running(session)
            ours = set(self.runner.active)
        claims = {Claim(job.id, job.owner or "", job.attempt): job for job in jobs}
        self._watched = {held: seen for held, seen in self._watched.items() if held in claims}
        for held, job in claims.items():
            if held in ours:
                continue
            reason = self._why_abandoned(held, job)
            if reason and self._orphan_has_ended(held, job):
                self._give_back(held, job, reason)

    def _why_abandoned(self, held: Claim, job: JobRow) -> str:
        """Why no worker looks after this job any more; empty while one does."""
        if held.owner == self.runner.owner:
            return "its worker lost sight of it"
        now = time.monotonic()
        seen = self._watched.setdefault(held, Watched(job.lease_until, looked_at=now))
        if processes.is_gone(held.owner):
            return "its worker is gone"
        if job.lease_until != seen.lease:
            seen.lease, seen.still_s = job.lease_until, 0.0
        else:
            seen.still_s += min(now - seen.looked_at, MAX_LOOK_S)
        seen.looked_at = now
        if seen.still_s > lifecycle.LEASE_S:
            return "its worker has not been heard of"
        return ""

    def _orphan_has_ended(self, held: Claim, job: JobRow) -> bool:
        """Whether no trainer of this attempt runs on this machine; asks and then forces one that does."""
        if job.pid is None or job.pid_born is None or not processes.is_local(held.owner) or not processes.is_alive(job.pid, job.pid_born):
            return True
        seen = self._watched.setdefault(held, Watched(job.lease_until, looked_at=time.monotonic()))
        if seen.asked_at is None:
            seen.asked_at = time.monotonic()
            processes.signal_group(job.pid, signal.SIGTERM)
        elif time.monotonic() - seen.asked_at > ORPHAN_GRACE_S:
            processes.kill_group(job.pid, job.pid_born)
        return False

    def _give_back(self, held: Claim, job: JobRow, reason: str) -> None:
        try:
            with self.runner.db.write() as session:
                if job.run_dir:
                    # what the attempt reported after its worker's last look: its checkpoint may lie behind these steps
                    ingest_events(session, held, RunDir(Path(job.run_dir)).attempt(held.attempt))
                if job.cancel == CancelRequest.KEEP:
                    keep_adapter(session, job)
                status = lifecycle.requeue(session, held, reason)
            logger.info("Job %s, attempt %s: %s; now %s.", job.name, held.attempt, reason, status)
            if status != JobStatus.QUEUED:  # else its next attempt takes the memory that the engine keeps for it
                sharing.end(self.runner.settings, job.name)
        except LostClaimError:
            pass  # another worker was quicker, or its own has come back

    def _keep(self) -> None:
        with self.runner.db.read() as session:
            waiting = lifecycle.to_keep(session)
        for job in waiting:
            with self.runner.db.write() as session:
                keep_adapter(session, job)
                lifecycle.kept(session, job.id)

    def _wake(self) -> None:
        free = self.free_threads()
        if free <= 0 or self.runner.stopping.is_set():
            return
        places = self.runner.slots()
        with self.runner.db.read() as session:
            unreachable = queue_order.unreachable(session)
            if not has_room(session, places):
                return
            waiting = queue_order.claimable(session, self.runner.queue, free, self.runner.without)
        if unreachable:
            with self.runner.db.write() as session:
                lifecycle.cancel_unreachable(session)
        for _ in waiting:
            self.notify()
