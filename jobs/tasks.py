"""The one task of the queues. It takes an ID and calls one function; every outcome is on the job's row."""

from __future__ import annotations

from huey import Huey

from jobs.runner import Runner


def register(huey: Huey, runner: Runner) -> None:
    """Teach a worker's queue what to do when the bell rings."""

    @huey.task()
    def run_job(job_id: str) -> None:
        runner.run(job_id)
