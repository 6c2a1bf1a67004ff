"""Tables of studio.db. Plain records: what they mean is decided in studio.services and studio.db.lifecycle."""

from __future__ import annotations

import secrets
import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from studio.db.columns import HomeJson, HomePath

ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # no l, o, 0, 1: IDs are read aloud

IS_RUNNING = text("status = 'RUNNING'")


def new_id() -> str:
    """Ten characters, about 50 bits."""
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(10))


class Base(DeclarativeBase):
    """Times are seconds since the epoch (UTC), as floats; null where it has not happened."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class DatasetRow(Base):
    """One version of a dataset: rows as JSON lines in `datasets/<id>/rows.jsonl`."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]  # sft, preference, unpaired-preference, prompts, text
    format: Mapped[str]  # as detected: alpaca, messages, sharegpt, ...
    rows: Mapped[int]
    skipped: Mapped[int] = mapped_column(default=0)
    mapping: Mapped[dict[str, Any]] = mapped_column(default=dict)
    source: Mapped[str] = mapped_column(default="")  # file name or hub name it came from, for people
    sha256: Mapped[str] = mapped_column(default="")  # of rows.jsonl
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    provenance: Mapped[dict[str, Any]] = mapped_column(HomeJson, default=dict)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float] = mapped_column(default=time.time)


class BaseModelRow(Base):
    """A base model known by name; the starter is always there and has no row."""

    __tablename__ = "base_models"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str] = mapped_column(HomePath)  # absolute folder
    architecture: Mapped[str]
    parameters: Mapped[int] = mapped_column(BigInteger)
    context: Mapped[int]
    loadable: Mapped[bool]
    reason: Mapped[str] = mapped_column(default="")
    probe: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # a studio.records.Probe; None until it was made
    created_at: Mapped[float] = mapped_column(default=time.time)


class JobRow(Base):
    """A launch. Only studio.db.lifecycle writes status, attempt, owner, lease, slot and cancel."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]  # train, compare, sweep, ...
    queue: Mapped[str] = mapped_column(default="gpu")  # which worker runs it: gpu, light; none for a sweep, whose children run
    name: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(default="QUEUED")
    recipe: Mapped[str] = mapped_column(default="")
    config: Mapped[dict[str, Any]] = mapped_column(HomeJson, default=dict)  # frozen at launch
    run_dir: Mapped[str] = mapped_column(HomePath, default="")  # absolute; "" for light jobs without files
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    base_model: Mapped[str] = mapped_column(default="")
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))  # the sweep it belongs to
    after_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))  # run only once that job has SUCCEEDED
    priority: Mapped[int] = mapped_column(default=0)  # higher first
    rank: Mapped[float] = mapped_column(default=time.time)  # lower first among equal priorities; a time, until somebody reorders
    attempt: Mapped[int] = mapped_column(default=0)  # counts claims
    lost: Mapped[int] = mapped_column(default=0)  # deaths from outside since the last new checkpoint
    checkpoint_step: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float] = mapped_column(default=0.0)  # back-off after a lost attempt
    slot: Mapped[str | None]  # device slot held while RUNNING; null for light jobs
    owner: Mapped[str | None]  # worker identity, studio.processes.owner_id
    lease_until: Mapped[float | None]  # moves with every beat; others watch whether it moves, not what time it says
    pid: Mapped[int | None]
    pid_born: Mapped[float | None]
    cancel: Mapped[str | None]  # what a person asked of a running job: null, "cancel", "keep", "pause"
    event_offset: Mapped[int] = mapped_column(BigInteger, default=0)  # bytes of this attempt's events.jsonl already ingested
    step: Mapped[int | None]
    max_steps: Mapped[int | None]
    planned_steps: Mapped[int | None]  # as computed at launch; null where only the trainer can know
    eta_s: Mapped[float | None]
    reason: Mapped[str] = mapped_column(default="")
    fix: Mapped[str] = mapped_column(default="")
    cause: Mapped[str] = mapped_column(default="")  # of a failure, for programs: out_of_memory, diverged, disk_full, ...
    remedy: Mapped[dict[str, Any]] = mapped_column(default=dict)  # options that would help, dotted keys
    is_halved: Mapped[bool] = mapped_column(default=False)  # memory ran out once, and the batch was halved
    result: Mapped[dict[str, Any]] = mapped_column(HomeJson, default=dict)
    tags: Mapped[list[Any]] = mapped_column(default=list)
    notes: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float] = mapped_column(default=time.time)
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    updated_at: Mapped[float] = mapped_column(default=time.time)

    __table_args__ = (
        # one running job per device slot, by the database itself
        Index("one_running_per_slot", "slot", unique=True, sqlite_where=IS_RUNNING, postgresql_where=IS_RUNNING),
        Index("jobs_by_status", "status", "priority", "created_at"),
        Index("jobs_by_parent", "parent_id"),
    )


class QueueStateRow(Base):
    """A queue that a person has paused: what runs goes on, nothing new starts."""

    __tablename__ = "queue_states"
    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[float]


class MetricRow(Base):
    """One point of a job's curve. A step replayed by a later attempt replaces the earlier one."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)  # train, eval, machine, drift, samples, rows
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    values: Mapped[dict[str, Any]]


class JobEventRow(Base):
    """What happened to a job, for people: claimed, lost, resumed, notices of the trainer, samples."""

    __tablename__ = "job_events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    at: Mapped[float] = mapped_column(default=time.time)
    kind: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(HomeJson, default=dict)


class AdapterRow(Base):
    """An adapter that can answer. `path` is the run's `adapter/`, or a folder of STUDIO_HOME/adapters."""

    __tablename__ = "adapters"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    base_model: Mapped[str]
    method: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    path: Mapped[str] = mapped_column(HomePath)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(default="")  # of adapter_model.safetensors
    created_at: Mapped[float] = mapped_column(default=time.time)


class ConversationRow(Base):
    """A chat that is kept."""

    __tablename__ = "conversations"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    title: Mapped[str] = mapped_column(default="")
    system: Mapped[str] = mapped_column(default="")
    tools: Mapped[str] = mapped_column(default="")  # that it may call, as the person wrote them
    created_at: Mapped[float] = mapped_column(default=time.time)
    updated_at: Mapped[float] = mapped_column(default=time.time)


class ChatMessageRow(Base):
    """One message of a conversation; `contestant` says who answered."""

    __tablename__ = "messages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    position: Mapped[int]
    role: Mapped[str]
    content: Mapped[str]
    tool_calls: Mapped[list[Any]] = mapped_column(default=list)  # of an answer
    tool_call_id: Mapped[str] = mapped_column(default="")  # of the result of a call
    contestant: Mapped[str] = mapped_column(default="")
    state: Mapped[str] = mapped_column(default="done")  # done, stopped, failed
    usage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    mark: Mapped[str] = mapped_column(default="")  # "good": an answer to learn from
    original: Mapped[str] = mapped_column(default="")  # what the model had written, where a person has changed it
    created_at: Mapped[float] = mapped_column(default=time.time)


class CachedAnswerRow(Base):
    """An answer that equal questions to an equal model get again. It leaves with the conversation it was given in."""

    __tablename__ = "cached_answers"
    key: Mapped[str] = mapped_column(primary_key=True)  # of prompt, model, adapter and parameters
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    text: Mapped[str]
    finish_reason: Mapped[str]
    usage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float] = mapped_column(default=time.time)


class ComparisonRow(Base):
    """Contestants x prompts; its job fills the answers."""

    __tablename__ = "comparisons"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    base_model: Mapped[str]
    contestants: Mapped[list[Any]]
    prompts: Mapped[list[Any]]  # [{"id", "messages", "reference"?, "category"?}]
    params: Mapped[dict[str, Any]] = mapped_column(default=dict)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    created_at: Mapped[float] = mapped_column(default=time.time)


class AnswerRow(Base):
    """One contestant's answer to one prompt, kept as it lands."""

    __tablename__ = "answers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), index=True)
    prompt_id: Mapped[str]
    contestant: Mapped[str]
    text: Mapped[str]
    turns: Mapped[list[Any]] = mapped_column(default=list)  # one answer per turn where the prompt has several
    seconds: Mapped[float]
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float] = mapped_column(default=time.time)

    __table_args__ = (UniqueConstraint("comparison_id", "prompt_id", "contestant"),)


class JudgementRow(Base):
    """One judge's look at a comparison; its job fills the verdicts."""

    __tablename__ = "judgements"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    judge: Mapped[str]  # as asked: "reference", "likelihood:MODEL", a model, or URL#MODEL
    kind: Mapped[str]  # reference, likelihood, model
    template: Mapped[str] = mapped_column(default="")  # of studio.evaluation.templates; "" without a model
    criteria: Mapped[str] = mapped_column(default="")
    readings: Mapped[dict[str, Any]] = mapped_column(default=dict)  # what its end made of it
    created_at: Mapped[float] = mapped_column(default=time.time)


class VerdictRow(Base):
    """One look at two answers, by a judge or a person; `a` was shown first. Kept as it lands."""

    __tablename__ = "verdicts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), index=True)
    judgement_id: Mapped[str | None] = mapped_column(ForeignKey("judgements.id", ondelete="CASCADE"))  # null: a person voted
    rater: Mapped[str]  # the judge, or the person's name
    prompt_id: Mapped[str]
    a: Mapped[str]
    b: Mapped[str]
    winner: Mapped[str]  # a, b, tie, invalid
    is_probe: Mapped[bool] = mapped_column(default=False)  # one side is a constant answer, to try the judge; counts nowhere else
    asked: Mapped[str] = mapped_column(default="")  # the whole prompt
    reply: Mapped[str] = mapped_column(default="")  # the whole reply, or what a person clicked
    key: Mapped[str] = mapped_column(default="", index=True)  # equal for equal questions to an equal judge
    is_cached: Mapped[bool] = mapped_column(default=False)
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[float] = mapped_column(default=time.time)

    __table_args__ = (UniqueConstraint("judgement_id", "prompt_id", "a", "b"),)


class ApiKeyRow(Base):
    """A key for programs; only its hash is kept."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    person: Mapped[str] = mapped_column(default="", server_default="")  # who made it; "" is whoever runs the studio
    scope: Mapped[str] = mapped_column(default="everything", server_default="everything")  # or chat, read
    created_at: Mapped[float] = mapped_column(default=time.time)
    used_at: Mapped[float | None]
    expires_at: Mapped[float | None]


class SessionRow(Base):
    """A login of somebody's browser; only the hash of its cookie is kept."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    sha256: Mapped[str] = mapped_column(unique=True)
    person: Mapped[str]  # of STUDIO_USERS; "" is whoever has the token
    credential: Mapped[str]  # a keyed hash of the password or token: with another one the session is over
    address: Mapped[str] = mapped_column(default="")
    device: Mapped[str] = mapped_column(default="")  # browser and system, for people
    created_at: Mapped[float] = mapped_column(default=time.time)
    used_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float]
