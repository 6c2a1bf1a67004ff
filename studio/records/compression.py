"""Compressed prompts, and what compression costs in answers."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict

from studio.records.base import Record
from studio.records.jobs import JobKind, JobStatus
from studio.records.judging import Winner


class Compression(Record):
    """A shortened prompt. Token counts are those of `counter`; `requested` and `achieved` are shares of tokens_before."""

    text: str
    tokens_before: int
    tokens_after: int
    requested: float
    achieved: float
    counter: str  # whose tokens count
    method: str
    seconds: float
    warnings: list[str] = []
    kept: list[tuple[str, bool]] = []  # the words of the original in order, each with whether it is in `text`
    compressor: str = ""
    original: str = ""
    lost: dict[str, list[str]] = {}  # kind of thing that must not get lost (studio.compress.checks.KINDS) -> those that did
    inner_rate: float | None = None  # at which the method gives what was requested
    achieved_compressible: float | None = None  # the share without what had to stay as it is
    fn_labeled_original_prompt: str | None = None  # llmlingua's, where return_word_label asks for it and nothing is calibrated


class AvailableCompressor(Record):
    """A model of this machine that can compress."""

    name: str
    title: str
    kind: str  # causal, or token-classification
    methods: list[str]
    cuts_words: bool  # its tokens are fragments of words


class KnownCompressor(Record):
    """A good compressor of the hub."""

    name: str
    title: str


class Compressors(Record):
    """What can compress."""

    compressors: list[AvailableCompressor]
    known: list[KnownCompressor]


class CompressionSaving(Record):
    """Seconds saved by reading fewer tokens; null where one of the prompts could not be read."""

    saved_s: float | None
    read_s_per_token: float | None
    compress_s: float | None = None
    break_even_tokens: int | None  # the length from which compressing pays; null where it never does


class PromptAnswer(Record):
    """What a model answers to a prompt."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    error: str = ""


class CompressionAnswers(Record):
    """What a model answers to a prompt and to its compression."""

    before: PromptAnswer
    after: PromptAnswer
    saving: CompressionSaving


class CompressionWinner(StrEnum):
    """Which answer is the better one."""

    ORIGINAL = "original"  # the one to the whole prompt
    COMPRESSED = "compressed"  # the one to its compression
    TIE = "tie"  # neither


class CompressionVerdict(Record):
    """Which of two answers a judge prefers, asked in both orders."""

    judge: str
    winner: CompressionWinner | None  # null where no order had a verdict
    consistent: bool | None  # both orders agree; null where one of them has no verdict
    replies: list[str]


class CompressionVote(Record):
    """A person's blind vote, as a verdict line that `studio leaderboard --verdicts` reads."""

    prompt_id: str
    a: str
    b: str
    winner: Winner
    rater: str
    answered_by: str


class CompressionVotes(Record):
    """How often which answer was the better one."""

    original: int
    compressed: int
    tie: int


class SweepPrompt(Record):
    """A prompt whose answer is known."""

    text: str
    reference: str | None = None
    question: str = ""


class SweepPoint(Record):
    """Answers at one rate. The metrics that a sweep measures by stand beside these fields by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    rate: float
    achieved: float
    tokens_before: int
    tokens_after: int
    seconds: float  # mean of an answer
    compress_seconds: float  # mean of a prompt
    failed: int
    n: int
    judge: float | None = None  # against the answers to the whole prompts: 0.5 is as good
    judged: int | None = None  # answers that had a verdict
    reasons: dict[str, str] = {}  # why a metric is null: it can't say anything about these references


class SweepResult(Record):
    """Quality against rate."""

    points: list[SweepPoint]
    tolerance: float
    metric: str
    judge: str
    recommended: float | None  # the lowest rate within the tolerance; null where the whole prompts score nothing
    whole: float | None  # the score of the whole prompts; null where the metric can't say anything about them


class CompressedTexts(StrEnum):
    """Which texts of a dataset's rows are compressed; those of less than 200 characters stay as they are."""

    LONGEST = "longest"  # of each row, its longest text of a user or of the system
    USER = "user"  # all that users say: prompts
    SYSTEM = "system"  # system messages
    ASSISTANT = "assistant"  # answers: completions, chosen and rejected too
    TOOL = "tool"  # what tools answered
    TEXT = "text"  # plain texts that are learned whole


class CompressedDataset(Record):
    """A version of a dataset with shorter texts."""

    dataset: str
    name: str
    rows: int
    shortened: int  # rows
    unchanged: int = 0  # rows, because no such text was long enough or could be made shorter
    texts: CompressedTexts = CompressedTexts.LONGEST
    tokens_before: int  # of the texts that became shorter
    tokens_after: int


class NoResult(Record):
    """A job that has not ended."""


class CompressionJob(Record):
    """A job of compression that was queued."""

    id: str
    name: str
    status: JobStatus
    kind: JobKind


class CompressionSweep(Record):
    """The sweep that was queued last."""

    id: str
    name: str
    status: JobStatus
    reason: str
    fix: str
    step: int | None
    max_steps: int | None
    method: str
    result: SweepResult | None
