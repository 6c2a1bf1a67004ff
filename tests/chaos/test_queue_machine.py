"""Whatever is done to the queue and to its processes, in any order: no job lost, none run twice at once, none stuck, no zombie.

Hypothesis draws the orders. The store, the queue, the workers and their processes are real; trainers are stand-ins.
STUDIO_EXAMPLES=30 draws more of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.strategies import booleans, integers, sampled_from
from sqlalchemy import func, select, update

from jobs import queue
from jobs.rundir import RunDir
from studio import settings as studio_settings
from studio.db import lifecycle, queue_order
from studio.db.models import JobRow, MetricRow
from studio.errors import StudioError
from studio.records import ENDED
from tests.chaos import stand_in
from tests.runs import open_store, submit
from tests.workers import row, trainers, wait_for

EXAMPLES = int(os.environ.get("STUDIO_EXAMPLES", "4"))
STUCK_S = 180.0  # thirty on a machine with nothing else to do


class QueueMachine(RuleBasedStateMachine):
    """One STUDIO_HOME, one worker that is always there or about to be, and jobs."""

    jobs = Bundle("jobs")

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="studio-chaos-"))
        self.environment = {**os.environ, "STUDIO_HOME": str(self.home), "STUDIO_ENGINE_URL": "http://127.0.0.1:9"}
        self.settings = studio_settings.load(self.environment)
        self.settings.make_folders()
        self.db = open_store(self.settings)
        self.steps: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.worker = self.start_worker()

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.chaos.fast_worker", "--queue", "gpu"]
        with (self.home / "worker.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self.environment)

    def end_worker(self, number: int) -> None:
        self.worker.send_signal(signal.SIGCONT)
        self.worker.send_signal(number)
        self.worker.wait(timeout=120)
        assert self.worker.stdin
        self.worker.stdin.close()

    @rule(target=jobs, steps=integers(3, 12), is_rung=booleans())
    def submit(self, steps: int, is_rung: bool) -> str:
        number = len(self.steps)
        job_id = submit(self.db, stand_in.make(self.settings.runs / str(number), steps), f"job-{number}")
        self.steps[job_id] = steps
        if is_rung:
            queue.notify(self.settings.queue_path, "gpu")
        return job_id

    @rule(job=jobs, times=integers(1, 5))
    def ring(self, job: str, times: int) -> None:
        for _ in range(times):
            queue.notify(self.settings.queue_path, "gpu")

    @rule()
    def lose_all_messages(self) -> None:
        queue.open_queue(self.settings.queue_path, "gpu").flush()

    @rule(job=jobs, keep=booleans())
    def cancel(self, job: str, keep: bool) -> None:
        with contextlib.suppress(StudioError), self.db.write() as session:
            lifecycle.cancel(session, job, keep)
            self.cancelled.add(job)

    @rule(job=jobs)
    def pause(self, job: str) -> None:
        with contextlib.suppress(StudioError), self.db.write() as session:
            lifecycle.pause(session, job)

    @rule(job=jobs)
    def resume(self, job: str) -> None:
        with contextlib.suppress(StudioError), self.db.write() as session:
            lifecycle.resume(session, job)

    @rule(job=jobs)
    def retry(self, job: str) -> None:
        with contextlib.suppress(StudioError), self.db.write() as session:
            lifecycle.retry(session, job)
            self.cancelled.discard(job)

    @rule(job=jobs, priority=integers(-2, 2))
    def move(self, job: str, priority: int) -> None:
        with contextlib.suppress(StudioError), self.db.write() as session:
            queue_order.move(session, job, priority)

    @rule(is_paused=booleans())
    def pause_or_resume_the_queue(self, is_paused: bool) -> None:
        with self.db.write() as session:
            (queue_order.pause_queue if is_paused else queue_order.resume_queue)(session, "gpu")

    @rule()
    def kill_trainer(self) -> None:
        for process in trainers(self.settings.runs):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @rule(number=sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def end_and_restart_worker(self, number: int) -> None:
        self.end_worker(number)
        self.worker = self.start_worker()

    @rule(seconds=sampled_from([0.3, 4.0]))
    def freeze_worker(self, seconds: float) -> None:
        """With nobody else there to take over, a frozen worker is only late."""
        self.worker.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.worker.send_signal(signal.SIGCONT)

    @rule()
    def reboot(self) -> None:
        self.end_worker(signal.SIGKILL)
        self.kill_trainer()
        wait_for(lambda: not trainers(self.settings.runs), timeout=120)
        with self.db.write() as session:  # what this boot has written looks, after the next one, as another boot's
            host, boot = "%:", "00000000-boot-before"
            for job in session.scalars(select(JobRow).where(JobRow.owner.like(host))):
                first, _, pid, born = (job.owner or "").split(":")
                session.execute(update(JobRow).where(JobRow.id == job.id).values(owner=f"{first}:{boot}:{pid}:{born}"))
        self.worker = self.start_worker()

    @rule(seconds=sampled_from([0.2, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    @invariant()
    def at_most_one_trains(self) -> None:
        assert len(trainers(self.settings.runs)) <= 1
        assert not list(self.settings.runs.glob("*/doubled"))
        with self.db.read() as session:
            assert (session.scalar(select(func.count()).where(JobRow.status == "RUNNING")) or 0) <= 1
            assert set(session.scalars(select(JobRow.id).where(JobRow.kind == "train"))) == set(
                self.steps
            )  # a report follows each that succeeds

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.end_worker(signal.SIGTERM)
            left = wait_for(lambda: trainers(self.settings.runs) == [] or None, timeout=120)
            assert left
            self.db.dispose()
            shutil.rmtree(self.home)

    def finish(self) -> None:
        """Let everything that may run, run; then every job has the end that it has earned."""
        with self.db.write() as session:
            queue_order.resume_queue(session, "gpu")
        begun = time.monotonic()
        for job_id, steps in self.steps.items():
            wait_for(lambda job_id=job_id: self.has_ended(job_id), timeout=STUCK_S + 2 * sum(self.steps.values()))  # type: ignore[misc]
            self.check_end(job_id, steps)
        assert time.monotonic() - begun < STUCK_S + sum(self.steps.values())
        wait_for(lambda: not self.zombies(), timeout=120)

    def has_ended(self, job_id: str) -> bool:
        self.at_most_one_trains()
        if row(self.db, job_id).status == "PAUSED" or row(self.db, job_id).cancel == "pause":
            self.resume(job_id)
        return row(self.db, job_id).status in ENDED

    def check_end(self, job_id: str, steps: int) -> None:
        job = row(self.db, job_id)
        if job.status == "CANCELLED":
            assert job_id in self.cancelled
            return
        assert job.status == "SUCCEEDED", (job.status, job.reason, (self.home / "worker.log").read_text()[-2000:])
        assert (RunDir(Path(job.run_dir)).adapter / stand_in.WEIGHTS).read_bytes() == stand_in.chain(steps)
        with self.db.read() as session:
            points = session.execute(select(MetricRow.step, MetricRow.values).where(MetricRow.job_id == job_id, MetricRow.kind == "train"))
            curve = {step: values["loss"] for step, values in points}
        assert curve == {step: stand_in.loss(stand_in.chain(step)) for step in range(1, steps + 1)}

    def zombies(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.worker.pid).children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE]


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=14,
    deadline=None,
    derandomize=EXAMPLES == 4,
    database=None,
    phases=[Phase.generate],  # an order that fails is said as it is: making it smaller would take hours
    suppress_health_check=list(HealthCheck),
)
