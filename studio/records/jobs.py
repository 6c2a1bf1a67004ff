"""Jobs, their curves, reports and bundles."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from studio.records.base import Record


class JobStatus(StrEnum):
    """Where a job stands. Only studio.db.lifecycle moves it."""

    QUEUED = "QUEUED"  # waits for its turn, its device or the job before it
    RUNNING = "RUNNING"  # a worker holds its lease
    PAUSED = "PAUSED"  # stopped by a person at a checkpoint; resumes from there
    SUCCEEDED = "SUCCEEDED"  # this attempt's result.json is there
    FAILED = "FAILED"  # ended with a reason and, where one is known, a fix
    CANCELLED = "CANCELLED"  # ended by a person


ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
WAITING = frozenset({JobStatus.QUEUED, JobStatus.PAUSED})
PENDING = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})  # goes on without a person
UNENDED = WAITING | PENDING
UNSUCCESSFUL = frozenset({JobStatus.FAILED, JobStatus.CANCELLED})


class JobKind(StrEnum):
    """What a job does. The worker's registry says how each kind runs."""

    TRAIN = "train"  # trains an adapter in a child process
    SWEEP = "sweep"  # stands for its children, one training per combination of options; runs nothing itself
    EXPORT = "export"  # writes an adapter in another format in a child process, and checks it
    COMPARE = "compare"  # lets contestants answer the prompts of a comparison
    JUDGE = "judge"  # judges the answers of a comparison
    REPORT = "report"  # follows a training: base against adapter on held-out rows, answered and judged
    COMPRESS_SWEEP = "compress-sweep"  # measures answers at several compression rates
    COMPRESS_DATA = "compress-data"  # compresses the prompts of a dataset


class QueueName(StrEnum):
    """The queues; each has a worker. The jobs of a sweep are in a queue, the sweep itself is in none."""

    GPU = "gpu"  # trainings and exports, one per device
    LIGHT = "light"  # jobs that only ask the engine


class CancelRequest(StrEnum):
    """What a person has asked of a running job; its worker acts on it."""

    CANCEL = "cancel"  # stop and discard
    KEEP = "keep"  # stop and turn the last verified checkpoint into the adapter
    PAUSE = "pause"  # stop at a checkpoint and stay PAUSED until resumed


# one point of a curve by measure, such as step, loss, learning_rate; which measures there are is up to the trainer
MetricPoint = dict[str, JsonValue]


class JobProgress(Record):
    """How far a job is; every field is null before its first step."""

    step: int | None
    max_steps: int | None
    eta_s: float | None  # until the end, from the pace so far


class Job(Record):
    """A job as lists show it."""

    id: str
    kind: Annotated[JobKind | str, Field(union_mode="left_to_right")]  # text: a kind of another version
    name: str
    status: JobStatus
    attempt: int  # how often it has been started
    progress: JobProgress
    reason: str  # why it ended, empty where that needs no reason
    fix: str  # what helps
    cause: str  # of a failure, for programs: out_of_memory, diverged, disk_full, ...
    remedy: dict[str, JsonValue]  # options that would help, by dotted key
    run_dir: str  # absolute; empty for jobs without files
    adapter: str | None  # ID of the adapter that it made
    base_model: str
    recipe: str
    data: str | None  # ID of the dataset
    parent: str | None  # ID of its sweep
    after: str | None  # ID of the job that has to succeed first
    priority: int  # higher first
    tags: list[str]
    notes: str
    stopping: CancelRequest | None  # what was asked of it while it runs
    starts_in_s: float | None  # forecast while it waits; null where unknown
    ends_at: float | None  # forecast while it waits or runs; null where unknown
    created_at: float
    started_at: float | None  # of the first attempt
    ended_at: float | None
    seconds_of_work: float | None = None  # of all attempts; waiting and pauses don't count; null before the first start


class SweepChild(Job):
    """A training of a sweep."""

    options: dict[str, JsonValue]  # its own values of the options that the sweep varies
    result: dict[str, JsonValue]


class JobEvent(Record):
    """Something that happened to a job. What else is known of it stands beside these fields, such as `text` or `reason`."""

    model_config = ConfigDict(extra="allow")

    at: float
    attempt: int
    kind: str  # submitted, started, lost, released, notice, resumed, cancelled, ...


class SampleRow(Record):
    """A row whose prompt is answered at every look."""

    line: int | None = None  # in train.jsonl or eval.jsonl, 1 first
    prompt: str = ""
    reference: str = ""


class SampleLook(Record):
    """The answers of one moment of a training, in the order of the rows."""

    step: int
    answers: list[str]


class Samples(Record):
    """What a training answers, look by look."""

    rows: list[SampleRow]
    base: list[str]  # answers of the base alone; empty where the method changes the base
    looks: list[SampleLook]


class DriftReading(Record):
    """How far a training has moved from its base on general questions."""

    step: int
    drift: float  # nats per token; above 0 it forgets
    ratio: float  # how much less likely the base's own answers have become
    advice: str


class KnownRow(SampleRow):
    """A held-out row with what the trained model makes of it."""

    loss: float
    answer: str = ""


class KnownRows(Record):
    """The held-out rows that a trained model knows best and least."""

    step: int
    judged: int  # rows that were looked at
    best: list[KnownRow]
    worst: list[KnownRow]


class WatchedTraining(Record):
    """What was observed of a training besides its curves; null where the training has not said it."""

    samples: Samples | None
    drift: DriftReading | None
    rows: KnownRows | None


class ReportJudgement(Record):
    """What the judge of a report says of the adapter against its base."""

    judge: str
    win_rate: float | None
    ci95: list[float] | None
    pairs: int | None = None
    swap_consistency: float | None = None
    longer_win_rate: float | None = None
    enough: bool | None = None
    more_needed: int | None = None
    warnings: list[str] = []


class ReportCounts(Record):
    """How the adapter fared against its base, in rows."""

    wins: int
    losses: int
    ties: int


class ReportExample(Record):
    """A held-out row with both answers, each cut to what is shown."""

    prompt_id: str
    prompt: str
    reference: str
    base: str
    tuned: str


class Report(Record):
    """Base against adapter on held-out rows. What the report has found is null until it has succeeded."""

    job: str
    training: str | None
    comparison: str
    status: JobStatus
    reason: str
    fix: str
    progress: JobProgress
    created_at: float
    ended_at: float | None
    judgement: str | None = None
    base: str | None = None
    adapter: str | None = None
    rows: int | None = None  # that were answered
    held_out: int | None = None  # of so many
    metrics: dict[str, dict[str, JsonValue]] | None = None  # contestant -> measures
    judge: ReportJudgement | None = None
    counts: ReportCounts | None = None
    wins: list[ReportExample] | None = None
    losses: list[ReportExample] | None = None


class JobDetail(Job):
    """One job, whole."""

    config: dict[str, JsonValue]  # frozen at launch
    result: dict[str, JsonValue]
    events: list[JobEvent]
    watched: WatchedTraining | None  # null unless it is a training
    report: Report | None  # the newest
    children: list[SweepChild] | None = None  # of a sweep


class QueueOverview(Record):
    """What the queue does."""

    running: list[Job]
    queued: int
    paused: bool
    queue_eta_s: float | None  # until it is empty; null where unknown


class Curves(Record):
    """The curves of a training, each in order of step and thinned to what a chart can show."""

    train: list[MetricPoint]
    eval: list[MetricPoint]
    machine: list[MetricPoint] = []
    drift: list[MetricPoint] = []


class RunVerdict(Record):
    """The newest judgement of a training's adapter."""

    win_rate: float
    ci95: list[float] | None
    judge: str
    comparison: str  # name


class JobComparison(Record):
    """Trainings side by side."""

    jobs: list[Job]
    differences: dict[str, list[JsonValue]]  # option -> its value per job, for options that are not all equal
    curves: dict[str, Curves]  # by ID, as is all below
    results: dict[str, dict[str, JsonValue]]
    judged: dict[str, RunVerdict | None]


class JobLog(Record):
    """The end of the log of the latest attempt."""

    id: str  # as it was asked for
    text: str


class JobScript(Record):
    """A training as a script."""

    id: str
    name: str
    script: str
    files: list[str]  # that it reads, written beside it; empty where only the text was asked for


class Bundle(Record):
    """A run that was written to one file."""

    id: str
    name: str
    path: str
    bytes: int
    adapter_sha256: str


class BundleResults(Record):
    """Figures of a bundle's run, there and here."""

    expected: dict[str, JsonValue]
    actual: dict[str, JsonValue]


class BundleCheck(Record):
    """Whether the run of a bundle gives the same adapter here."""

    reproduces: bool | None  # null until the rerun has succeeded
    expected: str  # sha256 of the adapter
    actual: str | None
    job: str  # the rerun
    name: str
    status: JobStatus
    reason: str
    fix: str
    results: BundleResults
    environment_differences: dict[str, list[JsonValue]]  # package or device -> [there, here]
