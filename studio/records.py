"""What people see, as frozen records: services return them; command line, HTTP and page show them. No behaviour."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from studio.types import Example, GenerationParams
from studio.types import Message as Message  # what is asked; ChatMessage is one that is kept


class Record(PydanticModel):
    """A frozen record that refuses unknown fields. Times are seconds since the epoch (UTC), durations seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Deleted(Record):
    """What was deleted, with its files."""

    id: str
    name: str
    deleted: bool = True


# jobs


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


# datasets


class DatasetKind(StrEnum):
    """What the rows of a dataset are for; objectives ask for kinds."""

    SFT = "sft"  # conversations, or prompts with their completions, to imitate
    PREFERENCE = "preference"  # a chosen and a rejected answer to the same prompt
    UNPAIRED_PREFERENCE = "unpaired-preference"  # single answers, each labelled good or bad
    PROMPTS = "prompts"  # prompts without answers, to compare models with
    TEXT = "text"  # documents, learned as they stand


class Severity(StrEnum):
    """How much a finding of a report matters."""

    BAD = "bad"  # harms training or measuring; fix it
    CHECK = "check"  # may be meant; look at the rows


class FixAction(StrEnum):
    """What `data fix` does to the rows of a finding."""

    DROP = "drop"  # leaves them out
    DEDUPLICATE = "deduplicate"  # keeps the first of each, leaves out the others
    MOVE = "move"  # leaves them to the other dataset
    MASK = "mask"  # puts a placeholder in place of personal data
    CLEAN = "clean"  # removes the characters


class RowProblem(Record):
    """A row that can't be read, mapped or rendered, and what would help."""

    line: int  # of the file, or the row's number; from 1
    problem: str
    fix: str


class Dataset(Record):
    """Checked rows of one kind. They never change; a change makes a new dataset."""

    id: str
    name: str
    kind: DatasetKind
    format: str  # the row format that the file was read as
    rows: int
    skipped: int  # rows of the file that were left out because of a problem
    mapping: dict[str, str]  # role -> column
    problems: list[RowProblem] = []  # of the rows that were left out, the first 100; told by `add` only
    source: str  # the file's name, hub:NAME, or what else the rows come from
    bytes: int  # of rows.jsonl
    sha256: str  # of rows.jsonl
    parent: str | None  # the dataset that this one was made from
    provenance: dict[str, Any]  # how it came to be; what it says depends on made_by
    created_at: float


class DatasetVersion(Record):
    """One member of a family of datasets: what a dataset was made from, or what was made of it."""

    id: str
    name: str
    rows: int
    parent: str | None
    provenance: dict[str, Any]  # as Dataset.provenance
    created_at: float


class DatasetHalves(Record):
    """What a split makes. Rows that are the same or almost the same are on one side."""

    train: Dataset
    eval: Dataset


class RowFormat(Record):
    """A way to lay out the columns of a file."""

    name: str
    kind: DatasetKind
    roles: list[str]  # the parts that a column can play
    description: str


class KnownMapping(Record):
    """How a file with the same columns was read the last time."""

    name: str  # of the dataset that was made of it
    format: str
    mapping: dict[str, str]


class Inspection(Record):
    """What `add` would make of a file; nothing is kept."""

    format: str
    kind: DatasetKind
    formats: list[str]  # all that could be chosen
    columns: list[str]
    roles: list[str]  # of the format
    mapping: dict[str, str]
    encoding: str
    notes: list[str]  # what was guessed or left out, in sentences
    preview: list[Example]  # the first rows
    problems: list[RowProblem]  # the first 100
    problem_count: int
    rows: int  # without those that have problems


class WrittenRows(Record):
    """A file of rows that was exported."""

    path: str
    rows: int
    bytes: int


class RunRows(Record):
    """How the rows of a run were split."""

    train_rows: int
    eval_rows: int


class LengthBin(Record):
    """One bar of a histogram: start <= length < end."""

    model_config = ConfigDict(serialize_by_alias=True)

    start: int = Field(alias="from")
    end: int = Field(alias="to")
    count: int


class LengthFigures(Record):
    """How long rows are. Percentiles are nearest-rank; all are 0 where there are no rows."""

    p50: int
    p95: int
    p99: int
    max: int
    mean: float
    histogram: list[LengthBin]  # the last bin may be wider and holds the longest


class Lengths(LengthFigures):
    """Lengths in a unit."""

    unit: str  # tokens of the base model that was named, else words


class Excerpt(Record):
    """A row of a finding, and the part of its text that shows why."""

    row: int
    text: str


class Finding(Record):
    """One thing that a report found, with its rows. Row numbers count from 1."""

    check: str
    title: str
    count: int
    rows: list[int]  # the first 100
    examples: list[Excerpt]
    explanation: str
    fix: str
    action: FixAction
    severity: Severity


class LanguageShare(Record):
    """A language, and the share of rows in it."""

    language: str  # ISO 639-1
    share: float


class DatasetReport(Record):
    """Everything that is wrong with the rows of a dataset, and what they are like."""

    dataset: str
    rows: int
    findings: list[Finding]
    lengths: Lengths  # of whole rows
    answers: Lengths
    languages: list[LanguageShare]  # the most frequent first
    checked: int
    sampled: dict[str, int] | None = None  # check -> rows it looked at, where these are not all
    seconds: float


class RenderedRow(Record):
    """One row as training sees it. `tokens`, `ids` and `learned` end at max_length."""

    row: int  # from 1
    text: str  # also of what is cut
    tokens: list[str]  # the text of each id
    ids: list[int]
    learned: list[bool]  # whether the loss counts the token
    cut: list[str]  # tokens behind max_length, which training never sees
    cut_learned: list[bool]
    truncated: bool
    length: int  # in tokens, before it is cut
    problem: str | None = None  # why it could not be rendered; then all else is empty


class TokenFigures(LengthFigures):
    """What rows come to in tokens. Shares are of the rows that were checked."""

    checked: int  # rows, spread evenly over the dataset
    share_truncated: float
    share_without_learned_tokens: float  # also of rows that can't be rendered
    problems: list[RowProblem]  # of rows that can't be rendered, the first 100
    problem_count: int


class TrainingCheck(TokenFigures):
    """Whether training can learn from a dataset."""

    rows: int


class Rendering(TokenFigures):
    """What a base model will see and learn of some rows; the figures are of all, or of an even sample."""

    total: int  # rows of the dataset
    rows: list[RenderedRow]
    template_name: str
    template_sha256: str


class TemplateInfo(Record):
    """A chat template that fits a base model."""

    choice: str  # what to pass as chat_template; "" for the default
    default: bool
    name: str
    sha256: str
    special_tokens: dict[str, str]  # those of the tokenizer that have a text
    stop_strings: list[str]  # an answer ends at any of them
    preview: RenderedRow  # a short conversation


class ParityDifference(Record):
    """The first place where training and chat see different ids."""

    row: int
    position: int  # index into both lists of ids
    training: list[int]
    chat: list[int]
    training_text: str
    chat_text: str
    reason: str
    shared: str  # the text before the place
    training_next: str
    chat_next: str


class Parity(Record):
    """Whether training sees the ids that a chat sends, with the answer behind them."""

    rows: int  # that could be compared
    identical: int
    skipped: int  # without an answer, or refused by the template for training too
    same: bool  # at least one row was compared, and all are identical
    template_name: str
    template_sha256: str
    first_difference: ParityDifference | None


# base models


class BaseModel(Record):
    """A base model that is known by name. The starter is always there; its ID is its name."""

    id: str
    name: str
    path: str  # absolute folder
    architecture: str  # as config.json names it
    parameters: int  # a tied output layer counts once
    context: int  # tokens; 0 where config.json does not say
    loadable: bool  # it can answer and be trained
    reason: str  # why it is not loadable; "" where it is


class RemovedModel(Record):
    """A base model that is no longer known. Its files are deleted only where the studio had fetched them."""

    name: str
    removed: bool = True


class HubModel(Record):
    """A text generation model of the Hugging Face hub, as a search finds it."""

    repository: str  # OWNER/NAME
    downloads: int
    gated: bool  # its terms must be accepted on its page first


class KnownBaseModel(Record):
    """A base model that people use, whether or not it is here."""

    repository: str  # OWNER/NAME on the hub
    parameters: int
    context: int  # tokens
    licence: str
    template: str  # the form of its conversations
    gated: bool  # its terms must be accepted on its page first
    weights: str  # how they are stored
    good_for: str
    refusal: str  # why it can't be used here; "" where it can
    fits: dict[str, bool | None]  # recipe or "full" -> whether it fits this machine's memory; null where that is not known
    here: bool  # a base model of this name was added
    checked: bool  # against the hub, by this studio
    note: str


# before a training: its memory, and what stands against it


class MemoryBreakdown(Record):
    """Predicted bytes on the device at the peak, by what they hold."""

    base_weights: int  # layers that can be quantised
    full_precision_weights: int  # embeddings, head, norms
    adapter: int  # what is trained, with its gradients
    optimizer: int
    activations: int
    logits: int  # the output layer
    overhead: int


class MemoryAdvice(Record):
    """One change that would save memory."""

    change: str  # in words, with the options
    saves_bytes: int
    options: dict[str, JsonValue]  # dotted keys


class MemoryCorrection(Record):
    """What past runs like this one on this machine say: measured / predicted."""

    factor: float
    runs: int


class ChatMemory(Record):
    """The same base model in the chat."""

    bytes: int
    stays_loaded: bool | None  # beside this training; null where the device is not known


class Fit(Record):
    """Predicted peak memory of one training. On a processor `process_bytes` come on top of it."""

    predicted_bytes: int
    breakdown: MemoryBreakdown  # adds up to predicted_bytes
    margin_bytes: int | None  # negative: so much is missing; null where the device is not known
    fits: bool | None
    advice: list[MemoryAdvice]  # the greatest saving first
    device: str  # cuda, cpu
    room_bytes: int | None  # what a training may take there
    process_bytes: int  # the imported trainer itself, on a processor
    paged_bytes: int  # optimizer states that may move to main memory
    error_bytes: int  # by which the prediction may be off, as measured
    peak_at: str  # the moment of the peak
    parameters: int
    trainable_parameters: int
    longest_max_length: int | None
    largest_batch: int | None
    chat: ChatMemory
    warnings: list[str]
    correction: MemoryCorrection


class MeasuredMemory(Record):
    """What a run really took, beside its prediction."""

    measured_bytes: int
    predicted_bytes: int
    device: str


class Refusal(Record):
    """One reason why a launch would be refused."""

    message: str
    fix: str
    change: dict[str, JsonValue]  # options that remove the reason; empty where a person has to decide


# adapters and exports


class Adapter(Record):
    """An adapter that can answer on its base model: trained here, merged, or brought from elsewhere."""

    id: str
    name: str
    base_model: str
    method: str  # lora, dora, ia3, prompt-tuning, ...
    job: str | None  # the job that trained it
    path: str  # absolute folder
    bytes: int  # of all its files
    created_at: float


class MergeMethod(StrEnum):
    """How adapters are added up."""

    LINEAR = "linear"  # the sum of the updates, each times its weight
    TIES = "ties"  # the largest values of each, where their signs agree
    DARE = "dare"  # a random part of each, scaled up to make up for the rest


class ExportFormat(StrEnum):
    """What others can load an export with."""

    ADAPTER = "adapter"  # safetensors as peft writes them; needs the base model
    MERGED = "merged"  # the whole model in 16 bit, as transformers writes it
    GGUF = "gguf"  # the whole model for llama.cpp and ollama
    GGUF_LORA = "gguf-lora"  # the adapter for llama.cpp; needs the base model as GGUF


class Outtype(StrEnum):
    """How a GGUF file stores the weights of a whole model."""

    F16 = "f16"  # 16 bits per weight
    Q8_0 = "q8_0"  # 8.5 bits per weight


class ReaderProof(Record):
    """What another program makes of the same file."""

    model_config = ConfigDict(extra="ignore")  # kept in files, which a later version may have written

    identical: int
    max_logit_diff: float
    worst_share: float
    clear_tokens: int
    wrong_tokens: int
    same_template_ids: bool
    passed: bool
    reason: str


class ExportProof(Record):
    """Whether the written files, read back, behave like the base model with the adapter. Both answer the same prompts."""

    model_config = ConfigDict(extra="ignore")  # as ReaderProof

    prompts: int
    identical: int  # prompts whose greedy answers are the same
    max_logit_diff: float  # the largest difference of a logit, over every position of the answers
    effect: float  # by how much the adapter changes the logits: the median of the largest change at each position
    worst_share: float  # the largest difference as a share of what the adapter changes; 0.05 would fail
    clear_tokens: int  # positions where the adapter prefers its token by more than the difference
    wrong_tokens: int  # of these, where the files prefer another one
    same_template_ids: bool  # tokenizer and template make the same ids of a conversation
    passed: bool
    reason: str  # why it did not pass; "" where it did
    readers: dict[str, ReaderProof] | None = None  # other programs that read the file, such as llama.cpp


class WrittenExport(Record):
    """What the process of an export has written and proved."""

    model_config = ConfigDict(extra="ignore")  # as ReaderProof

    path: str
    bytes: int
    format: ExportFormat
    files: list[str]
    verified: ExportProof


class Export(Record):
    """An adapter in a form that others can load, with its proof. Its ID is that of its job."""

    id: str
    name: str
    adapter: str
    base_model: str
    format: ExportFormat
    outtype: Outtype | None  # of format gguf only
    status: JobStatus
    reason: str
    fix: str
    path: str  # absolute folder
    bytes: int  # of all its files; 0 while it is written, and after it was deleted
    files: list[str]  # names in `path` that are still there
    verified: ExportProof | None  # null before the files were read back
    progress: JobProgress
    created_at: float


class PushedExport(Record):
    """An export that was uploaded to the Hugging Face hub."""

    repository: str
    url: str


# chat


class MessageState(StrEnum):
    """How a message ended."""

    DONE = "done"  # it is whole
    STOPPED = "stopped"  # a person stopped it; its text is what had come
    FAILED = "failed"  # an error ended it; its text is what had come


class LessonKind(StrEnum):
    """What chat teaches."""

    ANSWERS = "answers"  # answers that were marked as good, to imitate
    PREFERENCES = "preferences"  # answers that were corrected: a person's is better than the model's


class SpeculationGain(Record):
    """What drafts brought, measured in the same answer."""

    model_config = ConfigDict(extra="ignore")  # as AnswerUsage

    drafted_tokens: int
    accepted_tokens: int
    tokens_per_pass: float | None = None  # null where no draft was checked
    speedup: float | None = None  # against steps without drafts; null where none was measured
    stopped: bool = False  # drafting ended early, since it did not pay


class AnswerUsage(Record):
    """What an answer took, and how it was made. Only what is known is set; another server tells less."""

    model_config = ConfigDict(extra="ignore")  # kept with messages, which another version may have written

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    finish_reason: str | None = None  # stop, or length where it was cut
    first_token_s: float | None = None  # from the request to the first token
    tokens_per_s: float | None = None  # after the first token
    reused_tokens: int | None = None  # of the prompt, whose keys and values were cached
    recalled: bool | None = None  # it was given before under the same conditions
    notes: list[str] | None = None  # what the reader should know of how it was made
    speculation: SpeculationGain | None = None


class ChatMessage(Record):
    """One message of a conversation that is kept."""

    id: int
    position: int  # from 0
    role: str  # user or assistant
    content: str
    contestant: str  # who answered; "" for a person
    state: MessageState
    usage: AnswerUsage
    mark: str  # "good": an answer to learn from; else ""
    original: str  # what the model had written, where a person corrected it; else ""
    created_at: float


class Conversation(Record):
    """A conversation that is kept."""

    id: str
    title: str
    system: str  # the system prompt; "" for none
    created_at: float
    updated_at: float
    messages: int  # how many


class ExportedMessage(Record):
    """One message of an exported conversation; what is empty is left out."""

    role: str
    content: str = ""
    contestant: str | None = None
    state: MessageState
    usage: AnswerUsage | None = None
    mark: str | None = None
    original: str | None = None
    created_at: float


class ExportedConversation(Record):
    """A whole conversation as plain JSON."""

    id: str
    title: str
    system: str
    created_at: float
    updated_at: float
    messages: list[ExportedMessage]


class ChatLessons(Record):
    """How many answers of all conversations teach something."""

    answers: int  # marked as good
    preferences: int  # corrected


class ChatAnswer(Record):
    """One contestant's answer. Token counts are 0 where its server does not tell them."""

    contestant: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class ChatAnswers(Record):
    """One answer per contestant, in the order they were named."""

    answers: list[ChatAnswer]


class PromptPreview(Record):
    """Exactly what the model reads for a conversation."""

    text: str  # as the chat template writes it
    ids: list[int]
    tokens: list[str]  # the text of each id
    context: int  # tokens that the model can read and write together
    template: str  # the name of the chat template


class LoadedModel(Record):
    """The base model that the engine holds in memory."""

    base: str
    quantization: str  # nf4, int8, or "" where it is as stored
    device: str  # cpu or cuda
    adapters: list[str]  # names of those in memory, the longest unused first
    bytes: int  # of the base model and its adapters
    adapter_bytes: int
    adapter_budget_bytes: int  # adapters leave when they would take more


class LoadingModel(Record):
    """What the engine is loading: a base model or an adapter."""

    name: str
    since: float
    expected_s: float | None  # as long as it took last time; null where that is not known


class MemoryLease(Record):
    """Memory that the engine has left to a training job."""

    job: str  # its name
    room_bytes: int  # what the engine may use of what was free then
    keep_bytes: int  # what the job may take
    gave_way: bool  # the engine unloaded its model for the job


class EngineStatus(Record):
    """What the engine holds and does."""

    ok: bool = True  # it answers
    loaded: LoadedModel | None = None
    loading: LoadingModel | None = None
    active: int = 0  # answers that are being made
    waiting: int = 0  # answers that are queued
    yielded: MemoryLease | None = None


# comparisons, judgements, ratings


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


class TemplateKind(StrEnum):
    """What a model that judges is shown at once."""

    PAIRWISE = "pairwise"  # both answers
    SINGLE = "single"  # one answer, which it rates


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

    exact_match: float
    n: int  # answers to prompts that have a reference


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


class Judgement(JudgementReadings):
    """One judge's look at a comparison. The readings are null before its end."""

    id: str
    comparison: str
    judge: str
    kind: JudgeKind
    template: str  # how a model is asked; "" for other judges
    criteria: str
    job: str | None
    status: JobStatus
    reason: str
    fix: str
    progress: JobProgress
    created_at: float


class Ballot(Record):
    """Two answers without names. `ballot` goes back with the vote and says nothing about who is who."""

    comparison: str
    ballot: str  # "" where no pair is left
    prompt: ComparisonPrompt | None
    left: str | None  # null where no pair is left
    right: str | None
    voted: int
    total: int


class Vote(Record):
    """A vote that was kept, and who was who."""

    prompt_id: str
    left: str
    right: str
    choice: BallotChoice
    winner: Winner


class ContestantFacts(Record):
    """What is known of a contestant besides its ratings; null where it is not known, or was not asked for."""

    exact_match: float | None = None
    seconds_per_answer: float | None = None
    tokens_per_answer: float | None = None
    bytes: int | None = None  # of the adapter
    job: str | None = None  # the training
    training: str | None = None  # its name
    training_seconds: float | None = None
    eval_loss: float | None = None


class Rating(ContestantFacts):
    """A contestant's place on a leaderboard."""

    name: str
    bradley_terry: float
    bradley_terry_ci95: list[float] | None
    elo: float
    win_rate: float
    ci95: list[float]  # of win_rate
    games: int


class Position(Record):
    """What the order of the answers did; null where nothing can be said."""

    first_win_rate: float | None
    swap_consistency: float | None


class Leaderboard(Record):
    """Contestants, best first."""

    contestants: list[Rating]
    position: Position
    pairs: list[ContestantPair]
    missing_orders: int
    invalid: int
    warnings: list[str]
    comparisons: list[str] | None = None  # whose verdicts count; null for a file of verdicts


class RaterPair(Record):
    """How far two raters agree."""

    a: str
    b: str
    kappa: float | None
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


class LostPrompt(Record):
    """A prompt on which a contestant lost, with a proposal for a better answer."""

    prompt_id: str
    question: str
    answer: str
    better: str


# compression


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
    __pydantic_extra__: dict[str, float]

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


class SweepResult(Record):
    """Quality against rate."""

    points: list[SweepPoint]
    tolerance: float
    metric: str
    judge: str
    recommended: float | None  # the lowest rate within the tolerance; null where the whole prompts score nothing
    whole: float  # the score of the whole prompts


class CompressedDataset(Record):
    """A version of a dataset with shorter prompts."""

    dataset: str
    name: str
    rows: int
    shortened: int
    tokens_before: int
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


# the studio itself: doctor, status, storage, keys


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


class ApiKey(Record):
    """A key for a program, without the key itself."""

    id: str
    name: str
    created_at: float


class NewApiKey(ApiKey):
    """A key that was made a moment ago."""

    key: str  # shown this once: only its hash is kept


class DeletedApiKey(ApiKey):
    """A key that is refused from now on."""

    deleted: Literal[True] = True


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


class StatusStrip(QueueOverview):
    """Device, memory, what runs, what waits, what the engine holds."""

    device: str
    device_kind: str  # cpu or cuda
    memory: str  # used of all, as text
    memory_bytes: int  # of the device
    used_bytes: int
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


class DemoResult(Record):
    """What `studio demo` has made and measured."""

    job: str
    adapter: str
    comparison: str
    before: MatchScore  # the base on rows that were held out
    after: MatchScore  # the adapter on the same rows
    judge: DemoJudge
    chat: DemoChat
    seconds: float
