"""The left of the Jobs tab: what runs, what waits in the order it will start, what has ended; and what the queue says of itself.

Knows nothing of gradio: rows of the service in, data of templates/jobs.html and templates/queue.html out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.records import ENDED, WAITING, Job, JobKind, JobStatus, QueueOverview
from studio.ui import words

COMPARABLE = (JobKind.TRAIN, JobKind.SWEEP)
SHOWN_ENDED = 60


def groups(jobs: Sequence[Job], looks: Mapping[str, str]) -> list[dict[str, Any]]:
    """The list in its parts. `looks`: class of the colour of every run that is being compared."""
    names = {job.id: job.name for job in jobs}
    running = [job for job in jobs if job.status == JobStatus.RUNNING]
    waiting = [job for job in jobs if job.status in WAITING]
    ended = [job for job in jobs if job.status in ENDED]
    movable = [job.id for job in waiting if job.kind == JobKind.TRAIN]
    parts = (("Running", running), ("Waiting, in this order", waiting), ("Ended", ended[:SHOWN_ENDED]))
    found = [{"title": title, "jobs": [_row(job, names, looks, movable) for job in part], "more": ""} for title, part in parts if part]
    if len(ended) > SHOWN_ENDED:
        found[-1]["more"] = f"{len(ended) - SHOWN_ENDED:,} older ones are found with the search."
    return found


def _row(job: Job, names: Mapping[str, str], looks: Mapping[str, str], movable: Sequence[str]) -> dict[str, Any]:
    up = down = ""
    if job.id in movable:
        place = movable.index(job.id)
        up = "".join(movable[max(place - 1, 0) : place])
        down = "".join(movable[place + 1 : place + 2])
    return {
        **dict(job),
        "facts": facts(job, names),
        "look": looks.get(job.id, ""),
        "pickable": job.kind in COMPARABLE,
        "up": up,
        "down": down,
    }


def facts(job: Job, names: Mapping[str, str]) -> str:
    """What matters of a job in the list: when it starts and ends, or how long ago it did."""
    if job.status == JobStatus.RUNNING:
        items = [progress(job) or "starting", words.left(job.progress.eta_s)]
    elif job.status in ENDED:
        items = [words.ago(job.ended_at), "never started"]
        if job.started_at:
            items[-1] = f"took {words.duration(job.seconds_of_work)}"
    else:
        items = [_begins(job)]
        if job.ends_at:
            items.append(f"ends about {words.clock(job.ends_at)}")
        if job.after and job.after in names:
            items.append(f"after {names[job.after]}")
        if not any(items):
            items = [f"added {words.ago(job.created_at)}"]
    if job.parent and job.parent in names:
        items.append(f"of {names[job.parent]}")
    return " · ".join(item for item in items if item)


def _begins(job: Job) -> str:
    if job.starts_in_s is None or job.status != JobStatus.QUEUED:
        return ""
    if job.starts_in_s < 10:
        return "starts next"
    return f"starts in {words.duration(job.starts_in_s)}"


def progress(job: Job) -> str:
    done, of = job.progress.step, job.progress.max_steps
    if done is None or not of:
        return ""
    return f"step {done} of {of}"


def sentence(overview: QueueOverview, now: float) -> str:
    """What the queue as a whole will do: "These 3 end at about 03:40"."""
    running, queued, left = len(overview.running), overview.queued, overview.queue_eta_s
    if overview.paused:
        going_on = " What runs goes on." if running else ""
        return f"The queue is paused: {words.count(queued, 'job')} will wait until it is resumed.{going_on}"
    if not running + queued:
        return "Nothing runs and nothing waits."
    who = "This one ends" if running + queued == 1 else f"These {running + queued} end"
    if left is not None:
        return f"{who} at about {words.clock(now + left, now)}."
    return f"{running} running, {queued} waiting. When they end is known once the first steps are measured."
