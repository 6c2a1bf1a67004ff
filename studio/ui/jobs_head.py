"""The head of one job on the Jobs tab: how far it is, why it ended, what it has reached, and what can be done with it now.

Knows nothing of gradio: a job of the service in, data of templates/job.html and templates/job_actions.html out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from jobs import kinds
from studio.records import (
    UNSUCCESSFUL,
    CancelRequest,
    JobDetail,
    JobKind,
    JobStatus,
)
from studio.services.job_options import flat
from studio.ui import words
from studio.ui.jobs_queue import progress

MAX_EVENTS = 6
STOPPING = {
    CancelRequest.CANCEL: "stopping",
    CancelRequest.KEEP: "stopping, and keeping what it learned",
    CancelRequest.PAUSE: "pausing at its next checkpoint",
}


def head(job: JobDetail) -> dict[str, Any]:
    part = words.part(job.progress)
    return {
        "job": job,
        "facts": _facts(job),
        "part": part or 0.0,
        "progress": _progress(job, part) or "starting: the model is being loaded",
        "readings": _readings(job),
        "events": _events(job),
    }


def _progress(job: JobDetail, part: float | None) -> str:
    if job.status == JobStatus.QUEUED:
        items = [progress(job), "waiting for its turn"]
    elif job.status == JobStatus.PAUSED:
        items = [progress(job), "set aside"]
    elif job.stopping:
        items = [STOPPING[job.stopping]]
    else:
        items = [progress(job), words.share(part or None), words.left(job.progress.eta_s)]
    return " · ".join(item for item in items if item)


def actions(job: JobDetail) -> dict[str, Any]:
    """Data of templates/job_actions.html: the buttons as (act, label, tone)."""
    status, found = job.status, []
    remedy = []
    if status == JobStatus.FAILED:
        options = flat(job.config)
        remedy = [(key, _told(options.get(key)), _told(value)) for key, value in job.remedy.items()]
    if status == JobStatus.RUNNING and not job.stopping:
        found = [("keep", "Stop and keep what it learned", ""), ("pause", "Pause", ""), ("cancel", "Cancel", "stop")]
    elif status == JobStatus.QUEUED:
        found = [("pause", "Set aside", ""), ("cancel", "Cancel", "stop")]
    elif status == JobStatus.PAUSED:
        found = [("resume", "Go on", "primary"), ("keep", "Stop and keep what it learned", ""), ("cancel", "Cancel", "stop")]
    elif status in UNSUCCESSFUL:
        if remedy:
            found.append(("remedy", "Apply the fix and start again", "primary"))
        found.append(("retry", "Go on from where it stopped" if job.progress.step else "Try again", ""))
    if job.kind == JobKind.SWEEP:
        found = [("children", "Compare its runs", ""), *(one for one in found if one[0] != "keep")]
    return {"id": job.id, "actions": found, "remedy": remedy}


def _facts(job: JobDetail) -> str:
    items = [kinds.title(job.kind), f"added {words.ago(job.created_at)}"]
    if job.base_model:
        items[0] = f"{kinds.title(job.kind)} on {job.base_model}"
    if job.status == JobStatus.QUEUED and job.ends_at:
        items.append(f"ends about {words.clock(job.ends_at)}")
    if job.started_at:
        so_far = "took" if job.ended_at else "running for"
        items.append(f"{so_far} {words.duration(job.seconds_of_work)}")
    if job.attempt > 1:
        items.append(f"attempt {job.attempt}")
    if job.children:
        done = sum(child.status == JobStatus.SUCCEEDED for child in job.children)
        items.append(f"{done} of {words.count(len(job.children), 'run')} done")
    return " · ".join(items)


def _told(value: JsonValue) -> str:
    if value is None:
        return "empty"
    return value if isinstance(value, str) else json.dumps(value)


def _readings(job: JobDetail) -> list[tuple[str, str]]:
    """What a run that ended has reached."""
    losses = (("train_loss", "loss on training rows"), ("eval_loss", "loss on held-out rows"))
    found = [(label, f"{loss:.3f}") for key, label in losses if isinstance(loss := job.result.get(key), (int, float))]
    if tokens := job.result.get("tokens"):
        found.append(("tokens read", f"{tokens:,}"))
    if job.kind == JobKind.COMPRESS_DATA:
        found += _compressed(job.result)
    if job.kind == JobKind.COMPRESS_SWEEP and job.result.get("points"):
        best = job.result["recommended"]
        rate = words.share(best) if isinstance(best, (int, float)) else "none"
        found.append(("lowest good rate; the curve is on the Compress tab", rate))
    return found


def _compressed(result: Mapping[str, JsonValue]) -> list[tuple[str, str]]:
    if "shortened" not in result:
        return []
    found = [("prompts made shorter; below 200 characters they stay", f"{result['shortened']:,} of {result['rows']:,}")]
    if result["shortened"]:
        found.append(("their tokens", f"{result['tokens_before']:,} became {result['tokens_after']:,}"))
    return found


def _events(job: JobDetail) -> list[str]:
    """What the trainer noticed, and each time the run was lost; newest last."""
    found = []
    for event in job.events:
        about = event.model_extra or {}
        if event.kind == "notice" and about.get("text"):
            found.append(str(about["text"]))
        elif event.kind == "lost":
            found.append(f"Interrupted: {about.get('reason')}. It goes on from its last checkpoint.")
    return list(dict.fromkeys(found))[-MAX_EVENTS:]
