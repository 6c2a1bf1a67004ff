"""Records of jobs for tests of what is shown: everything that a test does not name is as for a job that was just queued."""

from __future__ import annotations

from typing import Any

from studio.records import Job, JobDetail, JobProgress

QUEUED: dict[str, Any] = {
    "id": "job1",
    "kind": "train",
    "name": "first",
    "status": "QUEUED",
    "attempt": 0,
    "reason": "",
    "fix": "",
    "cause": "",
    "remedy": {},
    "run_dir": "",
    "adapter": None,
    "base_model": "starter",
    "recipe": "",
    "data": None,
    "parent": None,
    "after": None,
    "priority": 0,
    "tags": [],
    "notes": "",
    "stopping": None,
    "starts_in_s": None,
    "ends_at": None,
    "created_at": 0.0,
    "started_at": None,
    "ended_at": None,
    "seconds_of_work": None,
}
WHOLE: dict[str, Any] = {"config": {}, "result": {}, "events": [], "watched": None, "report": None}


def progress(step: int | None = None, max_steps: int | None = None, eta_s: float | None = None) -> JobProgress:
    return JobProgress(step=step, max_steps=max_steps, eta_s=eta_s)


def job(**values: Any) -> Job:
    return Job.model_validate({**QUEUED, "progress": progress(), **values})


def detail(**values: Any) -> JobDetail:
    return JobDetail.model_validate({**QUEUED, **WHOLE, "progress": progress(), **values})
