"""Kinds of jobs: one entry each, read by the services that queue them, the worker and the page. Data only.

To add one: its name in studio.records.JobKind, its entry here, and what runs it: a function of a LightContext, or for
work on a run directory a program with a class in jobs/attempts.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from studio.records import JobKind, QueueName


@dataclass(frozen=True)
class KindOfJob:
    """What the studio has to know of a kind of job."""

    kind: JobKind
    title: str  # what a person reads
    queue: QueueName | None  # whose worker runs it; none for what stands for its children
    program: str  # module that a child process runs on the run directory; "" where none
    function: str  # `module:function` that runs in a thread of the light worker; "" where none
    is_clonable: bool  # with other options, as a new job
    is_own_row: bool  # in the list of jobs; what follows another job by itself is shown with that one
    waits_for_engine: bool  # is left waiting while there is no engine to ask


ENTRIES = (
    KindOfJob(JobKind.TRAIN, "training", QueueName.GPU, "jobs.train", "", True, True, False),
    KindOfJob(JobKind.SWEEP, "sweep", None, "", "", False, True, False),
    KindOfJob(JobKind.EXPORT, "export", QueueName.GPU, "jobs.export", "", False, True, False),
    KindOfJob(JobKind.COMPARE, "comparison", QueueName.LIGHT, "", "jobs.compare:run", False, True, False),
    KindOfJob(JobKind.JUDGE, "judgement", QueueName.LIGHT, "", "jobs.judge:run", False, True, False),
    KindOfJob(JobKind.REPORT, "report", QueueName.LIGHT, "", "jobs.report:run", False, False, True),
    KindOfJob(
        JobKind.COMPRESS_SWEEP,
        "compression curve",
        QueueName.LIGHT,
        "",
        "jobs.compress:sweep",
        False,
        True,
        False,
    ),
    KindOfJob(
        JobKind.COMPRESS_DATA,
        "compression of a dataset",
        QueueName.LIGHT,
        "",
        "jobs.compress:data",
        False,
        True,
        False,
    ),
)
KINDS: dict[str, KindOfJob] = {entry.kind: entry for entry in ENTRIES}


def queue_of(kind: JobKind) -> str:
    """The queue of a new job, as its row keeps it."""
    return KINDS[kind].queue or ""


def followers() -> tuple[JobKind, ...]:
    """Kinds that follow another job by themselves and are shown with it."""
    return tuple(entry.kind for entry in ENTRIES if not entry.is_own_row)


def title(kind: str) -> str:
    """What a person reads; the name itself for a kind of another version."""
    if kind not in KINDS:
        return kind
    return KINDS[kind].title
