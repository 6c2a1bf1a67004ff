"""The head of one job on the Jobs tab: how far it is, why it ended, what it has reached, and what can be done with it now.

Knows nothing of gradio: a job of the service in, data of templates/job.html and templates/job_actions.html out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.ui import words
from studio.ui.jobs_queue import WAITING, progress

TOLD_EVENTS, MAX_EVENTS = ("notice", "lost"), 6
STOPPING = {"keep": "stopping, and keeping what it learned", "pause": "pausing at its next checkpoint"}
Job = dict[str, Any]


def head(job: Job) -> dict[str, Any]:
    steps = job["progress"]
    part = (steps["step"] or 0) / steps["max_steps"] if steps["max_steps"] else 0.0
    text = " · ".join(item for item in (progress(job), words.share(part) if part else "", words.left(steps["eta_s"])) if item)
    if job["status"] in WAITING:
        text = " · ".join(item for item in (progress(job), "waiting for its turn" if job["status"] == "QUEUED" else "set aside") if item)
    elif job["stopping"]:
        text = STOPPING.get(job["stopping"], "stopping")
    return {
        "job": job,
        "facts": _facts(job),
        "part": part,
        "progress": text or "starting: the model is being loaded",
        "readings": _readings(job),
        "events": _events(job),
    }


def actions(job: Job) -> dict[str, Any]:
    """Data of templates/job_actions.html: the buttons as (act, label, tone)."""
    status, found = job["status"], []
    remedy = [(key, _told(_option(job["config"], key)), _told(value)) for key, value in job["remedy"].items()]
    is_helped = status == "FAILED" and bool(remedy)
    if status == "RUNNING" and not job["stopping"]:
        found = [("keep", "Stop and keep what it learned", ""), ("pause", "Pause", ""), ("cancel", "Cancel", "stop")]
    elif status == "QUEUED":
        found = [("pause", "Set aside", ""), ("cancel", "Cancel", "stop")]
    elif status == "PAUSED":
        found = [("resume", "Go on", "primary"), ("keep", "Stop and keep what it learned", ""), ("cancel", "Cancel", "stop")]
    elif status in ("FAILED", "CANCELLED"):
        found = [("remedy", "Apply the fix and start again", "primary")] if is_helped else []
        found.append(("retry", "Go on from where it stopped" if job["progress"]["step"] else "Try again", ""))
    if job["kind"] == "sweep":
        found = [("children", "Compare its runs", ""), *(one for one in found if one[0] != "keep")]
    return {"id": job["id"], "actions": found, "remedy": remedy if is_helped else []}


def _facts(job: Job) -> str:
    items = [f"{job['kind']} on {job['base_model']}" if job.get("base_model") else job["kind"], f"added {words.ago(job['created_at'])}"]
    if job["status"] == "QUEUED" and job["ends_at"]:
        items.append(f"ends about {words.clock(job['ends_at'])}")
    if job["started_at"]:
        items.append(f"{'took' if job['ended_at'] else 'running for'} {words.elapsed(job['started_at'], job['ended_at'])}")
    if job["attempt"] > 1:
        items.append(f"attempt {job['attempt']}")
    if children := job.get("children"):
        done = sum(child["status"] == "SUCCEEDED" for child in children)
        items.append(f"{done} of {words.count(len(children), 'run')} done")
    return " · ".join(items)


def _option(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None  # type: ignore[assignment]
    return config


def _told(value: Any) -> str:
    return value if isinstance(value, str) else "empty" if value is None else json.dumps(value)


def _readings(job: Job) -> list[tuple[str, str]]:
    """What a run that ended has reached."""
    result = job["result"]
    labels = (("train_loss", "loss on training rows"), ("eval_loss", "loss on held-out rows"))
    found = [(label, f"{result[key]:.3f}") for key, label in labels if isinstance(result.get(key), (int, float))]
    if result.get("tokens"):
        found.append(("tokens read", f"{result['tokens']:,}"))
    if job["kind"] == "compress-data" and "shortened" in result:
        found.append(("prompts made shorter; below 200 characters they stay", f"{result['shortened']:,} of {result['rows']:,}"))
        if result["shortened"]:
            found.append(("their tokens", f"{result['tokens_before']:,} became {result['tokens_after']:,}"))
    if job["kind"] == "compress-sweep" and result.get("points"):
        best = result["recommended"]
        found.append(("lowest good rate; the curve is on the Compress tab", "none" if best is None else words.share(best)))
    return found


def _events(job: Job) -> list[str]:
    """What the trainer noticed, and each time the run was lost; newest last."""
    found = [
        event.get("text") if event["kind"] == "notice" else f"Interrupted: {event.get('reason')}. It goes on from its last checkpoint."
        for event in job["events"]
        if event["kind"] in TOLD_EVENTS
    ]
    return list(dict.fromkeys(text for text in found if text))[-MAX_EVENTS:]
