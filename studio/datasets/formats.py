"""The row formats: one entry says what the columns of a file mean and what becomes of a row.

A new format is an entry here and, where no function of mapping.py fits, one more there. Detection, `data add`, the page, the HTTP
interface and error texts read the entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from studio.datasets import mapping as mappers
from studio.datasets.column_names import SPELLED
from studio.datasets.records import Row
from studio.datasets.shapes import ANSWER, ANY, ASKED, LABEL, NUMBERS, OPENAI, RANKED, SHAREGPT, TEXT, TURNS
from studio.records import DatasetKind

RowMapper = Callable[[Row, dict[str, str]], list[mappers.ExampleJson]]  # a row, and role -> column


@dataclass(frozen=True)
class RowRole:
    """A part of a row, the shapes it may have, and the column names by which it is known."""

    name: str
    shapes: frozenset[str]
    aliases: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Format:
    """A way to lay out rows. `kind` is what the rows are for; `examples` makes examples of a row, or raises RowError."""

    name: str
    kind: DatasetKind
    roles: tuple[RowRole, ...]
    description: str
    examples: RowMapper
    note: str = ""  # what a person should know of the examples, in a sentence
    is_chosen_only: bool = False  # has the same columns as another format: a choice of the user, never a guess

    def role_names(self) -> list[str]:
        return [role.name for role in self.roles]


@dataclass(frozen=True)
class Layout:
    """A format and the column of each of its roles."""

    format: Format
    mapping: dict[str, str]

    def examples(self, row: Row) -> list[mappers.ExampleJson]:
        """One, but for `instances`. Raises RowError with the reason and a fix."""
        return self.format.examples(row, self.mapping)


SYSTEM = RowRole("system", TEXT, SPELLED["system"], required=False)
TOOLS = RowRole("tools", ANY, SPELLED["tools"], required=False)
INPUT = RowRole("input", TEXT, ("input", "context", "inputs"), required=False)
HISTORY = RowRole("history", TURNS | {"lists"}, SPELLED["history"], required=False)
REASONING = RowRole("reasoning", TEXT, SPELLED["reasoning"], required=False)
QUESTION_NAMES, CONVERSATION_NAMES, RESPONSES_NAMES = SPELLED["prompt"], SPELLED["messages"], SPELLED["responses"]
CHOSEN_NAMES, REJECTED_NAMES, LABEL_NAMES = SPELLED["chosen"], SPELLED["rejected"], SPELLED["label"]
RANKED_NOTE = "The best answer of a row is paired with each worse one, so a row makes several pairs."

# in the order in which they are tried: the more a format asks for, the earlier
FORMATS = (
    Format(
        "openai-preference",
        DatasetKind.PREFERENCE,
        (
            RowRole("request", frozenset({"object"}), ("input",)),
            RowRole("chosen", ANSWER, ("preferred_output",)),
            RowRole("rejected", ANSWER, ("non_preferred_output",)),
        ),
        "a request with messages and tools, a preferred and a non-preferred output, as OpenAI's preference files have them",
        mappers.openai_preference,
    ),
    Format(
        "sharegpt-preference",
        DatasetKind.PREFERENCE,
        (
            RowRole("conversations", TURNS, CONVERSATION_NAMES),
            RowRole("chosen", ANSWER, CHOSEN_NAMES),
            RowRole("rejected", ANSWER, REJECTED_NAMES),
            SYSTEM,
            TOOLS,
        ),
        "a conversation, with a better and a worse answer to its end",
        mappers.preference,
    ),
    Format(
        "preference",
        DatasetKind.PREFERENCE,
        (
            RowRole("prompt", TEXT | TURNS, (*QUESTION_NAMES, "input"), required=False),
            RowRole("chosen", ANSWER, (*CHOSEN_NAMES, "response", "output", "completion", "answer")),
            RowRole("rejected", ANSWER, REJECTED_NAMES),
            INPUT,
            HISTORY,
            SYSTEM,
            TOOLS,
        ),
        "a prompt with a better and a worse answer",
        mappers.preference,
    ),
    Format(
        "messages-preference",
        DatasetKind.PREFERENCE,
        (
            RowRole("messages", TURNS, ("messages", "conversations", "conversation")),
            RowRole("rejected", ANSWER, REJECTED_NAMES),
            SYSTEM,
            TOOLS,
        ),
        "a conversation that ends with the better answer, and a worse one, as in ms-swift",
        mappers.continued,
    ),
    Format(
        "ranked",
        DatasetKind.PREFERENCE,
        (
            RowRole("prompt", TEXT | TURNS, (*QUESTION_NAMES, "input")),
            RowRole("responses", RANKED, RESPONSES_NAMES),
            INPUT,
            SYSTEM,
            TOOLS,
        ),
        "a prompt with answers that have a rank (1 is the best) or a score each; the best is paired with each worse one",
        mappers.ranked,
        note=RANKED_NOTE,
    ),
    Format(
        "ranked-lists",
        DatasetKind.PREFERENCE,
        (
            RowRole("prompt", TEXT | TURNS, (*QUESTION_NAMES, "input")),
            RowRole("responses", frozenset({"texts", "lists"}), RESPONSES_NAMES),
            RowRole("ranks", NUMBERS, ("ranks", "rank", "ranking", "scores", "score", "ratings", "rating", "rewards")),
            INPUT,
            SYSTEM,
            TOOLS,
        ),
        "a prompt with a list of answers and one of their ranks or scores; the best is paired with each worse one",
        mappers.ranked,
        note=RANKED_NOTE,
    ),
    Format(
        "sharegpt-kto",
        DatasetKind.UNPAIRED_PREFERENCE,
        (
            RowRole("conversations", TURNS, CONVERSATION_NAMES),
            RowRole("label", LABEL, LABEL_NAMES),
            SYSTEM,
            TOOLS,
        ),
        "a conversation whose last answer is marked good or bad",
        mappers.sharegpt_kto,
    ),
    Format(
        "kto",
        DatasetKind.UNPAIRED_PREFERENCE,
        (
            RowRole("prompt", TEXT | TURNS, (*QUESTION_NAMES, "input")),
            RowRole("completion", ANSWER, ("completion", "response", "output", "answer")),
            RowRole("label", LABEL, LABEL_NAMES),
            INPUT,
            HISTORY,
            REASONING,
            SYSTEM,
            TOOLS,
        ),
        "a prompt and an answer marked good or bad",
        mappers.kto,
    ),
    Format(
        "prompt-messages",
        DatasetKind.PROMPTS,
        (RowRole("messages", ASKED, ("messages", "conversations", "conversation")), SYSTEM, TOOLS),
        "a conversation without an answer, to compare models with",
        mappers.messages,
    ),
    Format(
        "messages",
        DatasetKind.SFT,
        (RowRole("messages", OPENAI, ("messages", "conversation", "conversations", "dialogue", "dialog", "chat", "turns")), SYSTEM, TOOLS),
        "a conversation with role and content, as in the OpenAI protocol",
        mappers.messages,
    ),
    Format(
        "sharegpt",
        DatasetKind.SFT,
        (
            RowRole("conversations", SHAREGPT, ("conversations", "conversation", "messages", "dialogue", "dialog", "chat", "items")),
            SYSTEM,
            TOOLS,
        ),
        "a conversation with from and value, as in ShareGPT",
        mappers.conversations,
    ),
    Format(
        "mt-bench",
        DatasetKind.PROMPTS,
        (RowRole("turns", frozenset({"texts"}), ("turns",)),),
        "questions to compare models with, one or more turns each",
        mappers.mt_bench,
    ),
    Format(
        "instances",
        DatasetKind.SFT,
        (RowRole("instruction", TEXT, ("instruction",)), RowRole("instances", frozenset({"objects"}), ("instances",))),
        "an instruction with a list of inputs and outputs, as in self-instruct",
        mappers.instances,
    ),
    Format(
        "alpaca",
        DatasetKind.SFT,
        (
            RowRole("instruction", TEXT, ("instruction", "instructions")),
            RowRole("output", TEXT, ("output", "response", "answer", "completion", "outputs", "target")),
            INPUT,
            HISTORY,
            REASONING,
            SYSTEM,
            TOOLS,
        ),
        "instruction, optional input, output",
        mappers.alpaca,
    ),
    Format(
        "question-answer",
        DatasetKind.SFT,
        (
            RowRole("question", TEXT, ("question", "query", "problem")),
            RowRole("answer", TEXT, ("answer", "response", "solution", "answers", "output", "completion")),
            RowRole("context", TEXT, ("context", "passage", "article", "input"), required=False),
            HISTORY,
            REASONING,
            SYSTEM,
            TOOLS,
        ),
        "a question and its answer",
        mappers.question_answer,
    ),
    Format(
        "prompt-completion",
        DatasetKind.SFT,
        (
            RowRole("prompt", TEXT | TURNS, ("prompt", "input", "user", "human", "source")),
            RowRole("completion", ANSWER, ("completion", "response", "output", "assistant", "bot", "gpt", "answer", "target", "reply")),
            INPUT,
            HISTORY,
            REASONING,
            SYSTEM,
            TOOLS,
        ),
        "a prompt and the answer to it, as one exchange of a conversation",
        mappers.prompt_completion,
    ),
    Format(
        "continuation",
        DatasetKind.SFT,
        (RowRole("prompt", TEXT, ("prompt",)), RowRole("completion", TEXT, ("completion",))),
        "a text and how it goes on, learned as it stands, without a chat template",
        mappers.continuation,
        is_chosen_only=True,
    ),
    Format(
        "text",
        DatasetKind.TEXT,
        (RowRole("text", TEXT, ("text", "content", "document", "body", "story")),),
        "documents, learned as they stand",
        mappers.document,
    ),
    Format(
        "prompts",
        DatasetKind.PROMPTS,
        (RowRole("prompt", TEXT | TURNS, (*QUESTION_NAMES, "input")), SYSTEM, TOOLS),
        "prompts without answers, to compare models with",
        mappers.prompts,
    ),
)
BY_NAME = {format.name: format for format in FORMATS}
