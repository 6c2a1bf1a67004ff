"""/api/compress: the use cases of studio.services.compression, same JSON. Compressors and counters are names, never paths."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field, JsonValue

from studio.api.json_bodies import JsonRoute
from studio.api.rest import Body, Here
from studio.records import (
    CompressedDataset,
    Compression,
    CompressionAnswers,
    CompressionJob,
    CompressionVerdict,
    Compressors,
    NoResult,
    SweepPrompt,
    SweepResult,
)
from studio.services.compression import MOST_CHARACTERS

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewCompression(Body):
    contexts: list[str] = Field(description="Documents, or one prompt.")
    method: str | None = Field(default=None, description="llmlingua2 when left out.")
    compressor: str | None = None
    counter: str | None = Field(default=None, description="Whose tokens count: the model that will read the prompt.")
    rate: float | None = Field(default=None, description="Share of the tokens to keep, above 0 and at most 1.")
    target_token: float | None = None
    instruction: str = ""
    question: str = ""
    force_tokens: list[str] = Field(default_factory=list)
    force_digits: bool = False
    dtype: str = "float32"
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="Options of llmlingua, and must_keep, keep_patterns, calibrate."
    )


@router.post("/compress")
def compress(studio: Here, body: NewCompression) -> Compression:
    """Make a prompt shorter, and say what was lost."""
    return studio.compression.compress(limit=MOST_CHARACTERS, **dict(body))


@router.get("/compressors")
def compressors(studio: Here) -> Compressors:
    """What can compress here, and good compressors of the hub."""
    return studio.compression.compressors.list()


class NewCompressionSweep(Body):
    contestant: str = Field(default="starter", description="Who answers, and whose tokens count.")
    data: str | None = Field(default=None, description="A dataset with answers.")
    rows: list[SweepPrompt] | None = Field(default=None, description="Prompts with their references, instead of a dataset.")
    rates: list[float] = Field(default_factory=lambda: [1.0, 0.8, 0.6, 0.4, 0.25])
    method: str = "llmlingua2"
    compressor: str | None = None
    metric: str = Field(default="exact_match", description="exact_match, number_match, rougeL or judge.")
    judge: str | None = Field(default=None, description="likelihood:MODEL, a model or URL#MODEL: sets answers beside the whole prompts'.")
    tolerance: float = Field(default=0.05, ge=0, le=1)
    limit: int = Field(default=50, ge=1, le=1000)
    options: dict[str, JsonValue] = Field(default_factory=dict)


class NewCompressedDataset(Body):
    data: str
    rate: float
    method: str = "llmlingua2"
    compressor: str | None = None
    name: str | None = None
    texts: str = Field(default="longest", description="Of each row: longest (of user and system), user, system, assistant, tool or text.")
    options: dict[str, JsonValue] = Field(default_factory=dict)


class NewCompressionAnswers(Body):
    before: str
    after: str
    contestant: str = "starter"
    compress_seconds: float = Field(default=0.0, ge=0)


class NewCompressionVerdict(Body):
    prompt: str
    before: str
    after: str
    judge: str = Field(description="likelihood:MODEL, a model, or URL#MODEL.")


@router.post("/compress/judge")
def judge(studio: Here, body: NewCompressionVerdict) -> CompressionVerdict:
    """Which of two answers a judge prefers, asked in both orders."""
    return studio.compression.judge_both(body.prompt, body.before, body.after, body.judge)


@router.post("/compress/sweep", status_code=202)
def sweep(studio: Here, body: NewCompressionSweep) -> CompressionJob:
    """Measure answers at several rates, as a job; its result has the curve and the lowest rate within the tolerance."""
    return studio.compression.sweep(**dict(body))


@router.post("/compress/data", status_code=202)
def compress_data(studio: Here, body: NewCompressedDataset) -> CompressionJob:
    """Write a version of a dataset with its long texts compressed, as a job."""
    given = body.model_dump()
    return studio.compression.compress_data(given.pop("data"), given.pop("rate"), **given.pop("options"), **given)


@router.get("/compress/jobs/{job}", response_model_exclude_unset=True)
def job_result(studio: Here, job: str) -> SweepResult | CompressedDataset | NoResult:
    """What a sweep or a compressed dataset came to; empty before its end."""
    return studio.compression.result(job)


@router.post("/compress/answers")
def answers(studio: Here, body: NewCompressionAnswers) -> CompressionAnswers:
    """What a model says to a prompt and to its compression, and what reading less saves."""
    return studio.compression.ask_both(body.before, body.after, body.contestant, compress_seconds=body.compress_seconds)
