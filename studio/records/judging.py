"""Comparisons, judgements, votes, ratings and metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from studio.records.base import Record
from studio.records.jobs import JobProgress, JobStatus
from studio.types import GenerationParams


class Winner(StrEnum):
    """Who won in the eyes of one rater; `a` was shown first."""

    A = "a"  # the answer that was shown first
    B = "b"  # the other one
    TIE = "tie"  # neither is better
    INVALID = "invalid"  # the reply holds no verdict


class JudgeKind(StrEnum):
    """How a judge decides."""

    REFERENCE = "reference"  # a rule: exact match with the reference, then ROUGE-L
    LIKELIHOOD = "likelihood"  # the answer to which a model gives the higher log-probability
    MODEL = "model"  # a model that is asked
    PANEL = "panel"  # several judges, whose majority decides


class TemplateKind(StrEnum):
    """What a model that judges is shown at once."""

    PAIRWISE = "pairwise"  # both answers
    SINGLE = "single"  # one answer, which it rates


class InvalidReason(StrEnum):
    """Why the reply of a judge is no verdict."""

    EMPTY = "empty"  # nothing was said, or nothing besides reasoning
    UNFINISHED_REASONING = "unfinished reasoning"  # it never came to an answer
    NO_VERDICT = "no verdict"  # it hedges, or speaks of something else
    TWO_VERDICTS = "two verdicts"  # it contradicts itself
    UNREADABLE = "not on the scale"  # a letter or number that means nothing here
    REFUSED = "refused"  # the server refused the question


class BallotChoice(StrEnum):
    """What a person can vote."""

    LEFT = "left"  # the left answer is better
    RIGHT = "right"  # the right answer is better
    TIE = "tie"  # both are equally good
    BOTH_BAD = "both-bad"  # neither is good; counts as a tie


class PreferenceSource(StrEnum):
    """Whose word decides a pair."""

    JUDGE = "judge"  # the newest judgement
    HUMAN = "human"  # people's votes
    BOTH = "both"  # people's votes, and the judgement where nobody voted


@with_config(ConfigDict(extra="allow"))
class PromptMessage(TypedDict):
    """One message of a prompt, as in the OpenAI protocol."""

    role: str
    content: str


class ComparisonPrompt(TypedDict):
    """A prompt of a comparison. Each turn adds its messages to the conversation and is answered before the next."""

    id: str
    turns: list[list[PromptMessage]]
    reference: NotRequired[str]  # of the last turn
    references: NotRequired[list[str]]  # one per turn, where there are several
    category: NotRequired[str]


class QuestionSet(Record):
    """Published questions that ship with the studio."""

    name: str
    title: str


class ComparisonAnswer(Record):
    """A contestant's answer to a prompt."""

    prompt_id: str
    contestant: str
    text: str  # of the last turn
    turns: list[str]
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    error: str  # why there is no answer; "" where there is one


class MatchScore(Record):
    """How often a contestant's answers equal the reference."""

    exact_match: float | None  # null where it says nothing; see `reason`
    n: int  # answers to prompts with a reference that an answer can equal
    left_out: int = Field(default=0, exclude_if=lambda count: not count)  # answers to prompts whose reference is a note to judge by
    reason: str = Field(default="", exclude_if=lambda reason: not reason)  # why exact_match is null


class JobState(Record):
    """Where the job stands that fills a comparison or a judgement; what has no job any more is done."""

    status: JobStatus
    reason: str
    fix: str
    progress: JobProgress


class ComparisonSummary(JobState):
    """A comparison without its prompts and answers."""

    id: str
    name: str
    base_model: str
    contestants: list[str]
    params: GenerationParams
    data: str | None  # the dataset whose rows are asked
    prompt_count: int
    job: str | None  # the job that lets the contestants answer
    training: str | None  # the training whose report this is
    created_at: float


class Comparison(ComparisonSummary):
    """The same prompts to several contestants, with the answers so far."""

    prompts: list[ComparisonPrompt]
    answers: list[ComparisonAnswer]
    scores: dict[str, MatchScore]  # of contestants that answered prompts with references


class MauveFigure(Record):
    """How alike the distributions of answers and references are, and what it was measured on."""

    mauve: float | None  # 0-1
    reason: str  # why it is null
    model: str  # the base whose last hidden states are the features
    answers: int
    references: int
    empty: int  # answers and references without a token, left out
    cut: int  # texts of which only the first tokens were read
    max_tokens: int
    clusters: int


class AnswerFigures(Record):
    """Figures of one contestant's answers. The metrics of studio.evaluation.metrics.METRICS stand beside these fields by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    answers: int = 0  # that were measured
    errors: int = 0  # prompts without an answer
    empty: int = 0
    seconds: float | None = None  # mean of an answer
    tokens: float | None = None  # mean of an answer
    n: int = 0  # answers to prompts that have references
    ci95: dict[str, list[float]] = {}  # of each metric that is a mean over rows
    reasons: dict[str, str] = {}  # why a metric is null: it can't say anything about these texts
    counted: dict[str, int] = {}  # answers that a metric speaks of, where these are not all of `n`
    tokenizers: dict[str, str] = {}  # sacrebleu's names, of the metrics that use one
    mauve_details: MauveFigure | None = None  # null where MAUVE was not asked for

    def metric(self, name: str) -> float | None:
        return (self.__pydantic_extra__ or {}).get(name)


class ComparisonMetrics(Record):
    """Every metric of every contestant of a comparison."""

    id: str
    name: str
    contestants: dict[str, AnswerFigures]


class JudgeTemplate(Record):
    """A way to ask a model that judges."""

    name: str
    title: str
    kind: TemplateKind


class JudgeEstimate(Record):
    """What a judgement will take."""

    judge: str
    questions: int
    prompt_tokens: int
    completion_tokens: int  # at most
    seconds: float | None  # null where no judge has judged yet


class Verdict(Record):
    """One look at two answers to a prompt; `a` was shown first."""

    prompt_id: str
    a: str
    b: str
    winner: Winner
    rater: str = ""  # the judge, or human:NAME
    probe: bool = False  # one side is a constant answer, to try the judge
    asked: str = ""  # the whole question
    reply: str = ""  # the whole reply, or what a person clicked
    cached: bool = False  # an equal judge was asked the same before
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class CategoryReadings(Record):
    """Win rates on the prompts of one category."""

    win_rate: dict[str, float | None]
    ci95: dict[str, list[float] | None]
    games: int


class VerdictAgreement(Record):
    """How often one judge names the contestant that another one names, over the pairs where that one decides."""

    agreement: float
    ci95: list[float]
    n: int


class LongestBaseline(Record):
    """A judge that always takes the longer answer."""

    judge: VerdictAgreement | None  # how often it says what this judge says
    references: VerdictAgreement | None  # how often it says what the references say


class ConstantBaseline(Record):
    """A constant answer that answers nothing, played against a contestant."""

    win_rate: float
    ci95: list[float]
    n: int


class JudgeBaselines(Record):
    """What a judge without judgement would have said."""

    longest: LongestBaseline
    constant_answer: ConstantBaseline | None  # null without probes


class AttackReadings(Record):
    """Answers that seem to talk to the judge, against others."""

    answers: int
    pairs: int
    win_rate: float
    ci95: list[float]
    references: float | None  # their win rate by the references
    lift: float | None  # win_rate above that of the references


class ContestantPair(Record):
    """Two contestants that met, with a sign test over the games that were not ties."""

    a: str
    b: str
    score: float  # of a, 0-1
    games: int
    p: float
    p_corrected: float  # for all pairs (Benjamini-Hochberg)
    differs: bool  # p_corrected is below 0.05


class RaterPair(Record):
    """How far two raters agree."""

    a: str
    b: str
    kappa: float | None
    kappa_ci95: list[float] | None = Field(default=None, exclude_if=lambda value: value is None)  # left out where kappa is null
    agreement: float | None
    n: int  # pairs of answers that both looked at


class MajorityScore(Record):
    """One rater against the majority of the truth raters, macro over a, b and tie."""

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    n: int


class Agreement(Record):
    """How far raters agree with each other and with the majority."""

    pairs: list[RaterPair]
    majority: dict[str, MajorityScore]


class JudgementReadings(Record):
    """What the verdicts of one judge say, and what speaks against the judge. Shares are 0-1; null where nothing can be said."""

    model_config = ConfigDict(extra="ignore")  # of judgements that another version has kept

    pairs: int | None = None
    win_rate: dict[str, float | None] | None = None
    ci95: dict[str, list[float] | None] | None = None  # of win_rate
    swap_consistency: float | None = None
    first_win_rate: float | None = None
    longer_win_rate: float | None = None
    length_controlled_win_rate: dict[str, float | None] | None = None
    invalid: int | None = None  # replies without a verdict
    missing_orders: int | None = None
    enough: bool | None = None  # the widest interval is within 10 points
    more_needed: int | None = None  # prompts until then, about
    categories: dict[str, CategoryReadings] | None = None
    baselines: JudgeBaselines | None = None
    attacks: AttackReadings | None = None
    reference_agreement: VerdictAgreement | None = None
    pairwise: list[ContestantPair] | None = None
    able: bool | None = None  # it agrees with the references often enough; null where that is not known
    warnings: list[str] | None = None
    verdicts: int | None = None
    cached: int | None = None  # of the verdicts
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    is_cut_by_budget: bool | None = None
    invalid_reasons: dict[InvalidReason, int] | None = None  # of the replies that are invalid; null where no model was asked
    by_order: int | None = None  # verdicts of replies that say "the first answer" or "1" for A; null where no model was asked
    panel: dict[str, JudgementReadings] | None = None  # of each judge by name, where several judge; the rest is their majority
    agreement: Agreement | None = None  # of the judges of a panel, with each other and with their majority


class Judgement(JudgementReadings):
    """One judge's look at a comparison. The readings are null before its end."""

    id: str
    comparison: str
    judge: str
    kind: JudgeKind
    template: str  # how a model is asked; "" for other judges
    criteria: str
    member_of: str | None = None  # the judgement of the panel that this judge belongs to
    job: str | None
    status: JobStatus
    reason: str
    fix: str
    progress: JobProgress
    created_at: float
