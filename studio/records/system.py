"""The studio itself: doctor, status, storage, keys."""

from __future__ import annotations

from enum import StrEnum

from studio.records.base import Record
from studio.records.chat import ChatAnswer, EngineStatus
from studio.records.jobs import QueueOverview


class PageState(StrEnum):
    """Whether the web page can be shown."""

    STARTING = "starting"  # it is being built; a request for it waits
    READY = "ready"  # it answers
    FAILED = "failed"  # it can't be built, and `reason` says why; /api and /v1 answer without it


class PageHealth(Record):
    """The page, and why it can't be built."""

    state: PageState
    reason: str = ""  # type and message of the error, in one line


class EngineState(StrEnum):
    """What the engine does, in one word."""

    STARTING = "starting"  # it does not answer yet
    LOADING = "loading"  # it loads a model
    READY = "ready"  # it answers


class HealthStatus(StrEnum):
    """Whether a visitor finds what they came for."""

    OK = "ok"  # the page answers, or will in a moment
    FAILED = "failed"  # the page can't be built


class Health(Record):
    """What /health answers: 200, or 503 where the page can't be built."""

    status: HealthStatus
    version: str
    engine: EngineState
    page: PageState
    reason: str | None = None  # of a page that can't be built; absent while there is none


class DoctorCheck(Record):
    """One thing that has to work on this machine."""

    name: str
    ok: bool
    detail: str
    fix: str  # what would make it work; empty where it does


class DoctorReport(Record):
    """What works on this machine, and what would make the rest work."""

    checks: list[DoctorCheck]


class DiskUse(Record):
    """What one folder of STUDIO_HOME takes."""

    noun: str
    bytes: int
    unused_bytes: int  # of files that nothing refers to


class UnusedFile(Record):
    """A file or folder that nothing refers to."""

    noun: str
    path: str
    bytes: int
    why: str


class KeptFile(UnusedFile):
    """A file or folder that could not be deleted."""

    problem: str


class StorageUse(Record):
    """What takes room, and what of it nothing refers to."""

    nouns: list[DiskUse]
    free_bytes: int
    unused: list[UnusedFile]
    unused_bytes: int


class CleanedStorage(Record):
    """What was deleted, and what could not be."""

    deleted: list[UnusedFile]
    freed_bytes: int
    kept: list[KeptFile]


class BugReport(Record):
    """The file that `studio doctor --report` has written."""

    path: str
    bytes: int


class BackupModel(Record):
    """A base model that a backup leaves out: it is large, and can be had again."""

    name: str
    path: str  # its folder


class Backup(Record):
    """A backup that has been written."""

    path: str
    bytes: int
    files: int  # beside the database
    models: list[BackupModel]  # base models that are not in it


class Restoration(Record):
    """A studio that has been replaced by a backup."""

    home: str
    files: int  # beside the database
    models: list[str]  # names of base models that are not here and have to be added again
    before: str | None  # folder of what was there; null where nothing was


class DeviceReading(Record):
    """A GPU that this studio may take, or the processor where there is none. What its driver does not tell is null."""

    name: str
    kind: str  # cpu or cuda
    memory_bytes: int
    used_bytes: int
    use: float | None = None  # share of the last moment in which it computed, 0-1
    temperature_c: int | None = None
    power_w: float | None = None
    problem: str = ""  # why PyTorch can't use it, in a sentence


class StatusStrip(QueueOverview):
    """Device, memory, what runs, what waits, what the engine holds."""

    device: str
    device_kind: str  # cpu or cuda
    memory: str  # used of all, as text
    memory_bytes: int  # of the device
    used_bytes: int
    devices: list[DeviceReading] = []  # each of them; the fields above are of the first
    problem: str = ""  # why no GPU is used although one is here; device=auto is refused then
    fix: str = ""
    engine: EngineStatus


class DemoJudge(Record):
    """How the demo's adapter does against its base in one judge's eyes."""

    judge: str
    win_rate: float | None
    ci95: list[float] | None
    swap_consistency: float | None


class DemoChat(Record):
    """A question that the training never saw, and who answers what."""

    question: str
    answers: list[ChatAnswer]


class DemoScore(Record):
    """How often answers to the demo's held-out rows, which are short, equal the reference."""

    exact_match: float
    n: int  # rows


class DemoResult(Record):
    """What `studio demo` has made and measured."""

    job: str
    adapter: str
    comparison: str
    before: DemoScore  # the base on rows that were held out
    after: DemoScore  # the adapter on the same rows
    judge: DemoJudge
    chat: DemoChat
    seconds: float
