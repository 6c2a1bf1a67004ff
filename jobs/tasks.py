"""The one task of the queues: it calls one function; every outcome is on the rows of jobs."""

from __future__ import annotations

from huey import Huey

from jobs.runner import Runner


def register(huey: Huey, runner: Runner) -> None:
    """What a worker does when it is notified."""

    @huey.task()
    def run_jobs() -> None:
        runner.run()
