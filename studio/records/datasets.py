"""Datasets, findings, rendered rows."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import ConfigDict, Field, JsonValue

from studio.records.base import Record
from studio.types import DroppedPart, Example


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
    BREAK_UP = "break_up"  # writes control tokens so that they are read as text
    FILL = "fill"  # puts a person's values in place of placeholders; without values leaves the rows out
    IMITATE = "imitate"  # turns the answers marked good into rows to imitate, leaves out the others


class RowProblem(Record):
    """A row that can't be read, mapped or rendered, and what would help."""

    line: int  # of the file, or the row's number; from 1
    problem: str
    fix: str


class UsedKey(Record):
    """A key of messages that was read beside role and content."""

    read_as: str  # train, reasoning, tool_calls, name
    messages: int  # that hold something under it


class UnusedParts(Record):
    """What of a file was not read, and how often it held something."""

    columns: dict[str, int] = {}  # column -> rows
    message_keys: dict[str, int] = {}  # key of a message -> messages


class Dataset(Record):
    """Checked rows of one kind. They never change; a change makes a new dataset."""

    id: str
    name: str
    kind: DatasetKind
    format: str  # the row format that the file was read as
    rows: int
    skipped: int  # rows of the file that were left out because of a problem
    mapping: dict[str, str]  # role -> column
    used: dict[str, str] = {}  # role -> column, as `mapping`
    used_message_keys: dict[str, UsedKey] = {}  # beside role and content
    unused: UnusedParts = UnusedParts()  # what of the file was not read
    notes: list[str] = []  # what was guessed or left out, in sentences
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
    used: dict[str, str]  # role -> column, as `mapping`
    used_message_keys: dict[str, UsedKey]  # beside role and content
    unused: UnusedParts
    encoding: str
    notes: list[str]  # what was guessed or left out, in sentences
    preview: list[Example]  # the first rows
    problems: list[RowProblem]  # the first 100
    problem_count: int
    rows: int  # without those that have problems


class TableColumn(Record):
    """A column of a file that is not kept yet."""

    name: str
    holds: str  # in a word or two, such as "text" or "conversations"
    filled: int  # rows with a value, of those that were looked at
    reason: str  # why it is guessed to play its role, or none
    says: str | None = None  # what it says of how rows are meant, where its values do


class TableRow(Record):
    """A row as it stands in a file."""

    line: int
    cells: list[str]  # one for each column that is shown; long ones end in "…"
    problem: str | None = None  # why the row can't be read; then it has no cells


class FirstRows(Record):
    """The first rows of a file as they are, and what its columns are guessed to be."""

    columns: list[TableColumn]
    more_columns: list[str]  # names of those that are not shown
    rows: list[TableRow]
    looked_at: int  # rows that the guess is made from
    format: str
    mapping: dict[str, str]  # role -> column; not complete where nothing more can be guessed
    is_certain: bool  # false where contents or places decided, for a person to check
    refusal: str | None = None  # why the file is not read without a choice


class ColumnChoice(Record):
    """How columns are to be read."""

    format: str
    mapping: dict[str, str]  # role -> column
    missing: list[str]  # roles that still need a column


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
    names: dict[str, int] = Field(default_factory=dict)  # what was found by name, such as a token or a placeholder, and in how many rows


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
    left_out: list[DroppedPart] = []  # what the chat template does not write of the row


class TokenFigures(LengthFigures):
    """What rows come to in tokens. Shares are of the rows that were checked."""

    checked: int  # rows, spread evenly over the dataset
    truncated: int = 0  # rows of these that are cut
    share_truncated: float
    share_without_learned_tokens: float  # also of rows that can't be rendered
    problems: list[RowProblem]  # of rows that can't be rendered, the first 100
    problem_count: int
    cut_before_learned: int = 0  # rows whose learned tokens all lie behind max_length
    nothing_learned: int = 0  # rows without a token to learn at any length
    left_out: dict[DroppedPart, int] = {}  # rows of which the chat template leaves something out
    empty_reasoning: int = 0  # rows that teach an empty block of reasoning
    control_tokens: dict[str, int] = {}  # control token that is written as text -> rows


class TrainingCheck(TokenFigures):
    """Whether training can learn from a dataset."""

    rows: int


class Alternative(Record):
    """A way on where a chat template leaves something out."""

    title: str
    change: dict[str, JsonValue]  # options of the job


class Advice(Record):
    """Something of rows that a training would not learn as it is meant, and the ways on."""

    sentence: str
    alternatives: list[Alternative]


class Rendering(TokenFigures):
    """What a base model will see and learn of some rows; the figures are of all, or of an even sample."""

    total: int  # rows of the dataset
    max_length: int = 0  # where rows are cut: what was asked for, or what a training takes that sets none
    length_notice: str = ""  # why that is less than the default or the recipe's
    advice: list[Advice] = []
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


class TemplateLoss(Advice):
    """What a chat template leaves out of the rows that were looked at."""

    what: DroppedPart
    rows: int


class Parity(Record):
    """Whether training sees the ids that a chat sends, with the answer behind them."""

    rows: int  # that could be compared
    identical: int
    skipped: int  # without an answer, or refused by the template for training too
    same: bool  # at least one row was compared, and all are identical
    template_name: str
    template_sha256: str
    first_difference: ParityDifference | None
    losses: list[TemplateLoss] = []
    training_date: str | None = None  # printed in every row of the training; None where the template prints no date
    chat_date: str | None = None  # of today, which chat prints; no difference that counts
