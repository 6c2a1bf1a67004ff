"""What a file's columns mean: the known formats, and which of them a file is. Knows rows only by their columns' shapes."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from studio.datasets.json_records import parse_json
from studio.datasets.records import MAX_COLUMNS, Row
from studio.errors import DatasetError
from studio.records import DatasetKind

MAX_CELL_CHARS = 8 * 1024**2  # of a cell that holds JSON or a Python literal

Shapes = frozenset[str]
Columns = dict[str, Counter[Shapes]]

TEXT = frozenset({"text", "number"})
OPENAI = frozenset({"openai turns"})
SHAREGPT = frozenset({"sharegpt turns"})
TURNS = OPENAI | SHAREGPT
ANSWER = TEXT | TURNS | {"turn"}
LABEL = frozenset({"label"})
ANY = TEXT | {"objects", "object", "lists"}


@dataclass(frozen=True)
class RowRole:
    """A part of a row, the shapes it may have, and the column names by which it is known."""

    name: str
    shapes: frozenset[str]
    aliases: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Format:
    """A way to lay out rows. `kind` is what the rows are for."""

    name: str
    kind: DatasetKind
    roles: tuple[RowRole, ...]
    description: str

    def role_names(self) -> list[str]:
        return [role.name for role in self.roles]


@dataclass(frozen=True)
class Layout:
    """A format and the column of each of its roles."""

    format: Format
    mapping: dict[str, str]


SYSTEM = RowRole("system", TEXT, ("system", "system_prompt", "system_message"), required=False)
TOOLS = RowRole("tools", ANY, ("tools", "functions"), required=False)
QUESTION_NAMES = ("prompt", "question", "instruction", "query")

# in the order in which they are tried: the more a format asks for, the earlier
FORMATS = (
    Format(
        "sharegpt-preference",
        DatasetKind.PREFERENCE,
        (
            RowRole("conversations", TURNS, ("conversations", "conversation", "messages")),
            RowRole("chosen", ANSWER, ("chosen",)),
            RowRole("rejected", ANSWER, ("rejected",)),
            SYSTEM,
            TOOLS,
        ),
        "a conversation, with a better and a worse answer to its end",
    ),
    Format(
        "preference",
        DatasetKind.PREFERENCE,
        (
            RowRole("prompt", TEXT | TURNS, QUESTION_NAMES, required=False),
            RowRole("chosen", ANSWER, ("chosen", "chosen_response", "answer_chosen")),
            RowRole("rejected", ANSWER, ("rejected", "rejected_response", "answer_rejected")),
            RowRole("input", TEXT, ("input",), required=False),
            SYSTEM,
            TOOLS,
        ),
        "a prompt with a better and a worse answer",
    ),
    Format(
        "sharegpt-kto",
        DatasetKind.UNPAIRED_PREFERENCE,
        (
            RowRole("conversations", TURNS, ("conversations", "conversation", "messages")),
            RowRole("label", LABEL, ("label", "kto_tag")),
            SYSTEM,
            TOOLS,
        ),
        "a conversation whose last answer is marked good or bad",
    ),
    Format(
        "kto",
        DatasetKind.UNPAIRED_PREFERENCE,
        (
            RowRole("prompt", TEXT | TURNS, QUESTION_NAMES),
            RowRole("completion", ANSWER, ("completion", "response", "output", "answer")),
            RowRole("label", LABEL, ("label", "kto_tag")),
            SYSTEM,
        ),
        "a prompt and an answer marked good or bad",
    ),
    Format(
        "messages",
        DatasetKind.SFT,
        (RowRole("messages", OPENAI, ("messages", "conversation", "conversations", "dialogue", "dialog", "chat", "turns")), SYSTEM, TOOLS),
        "a conversation with role and content, as in the OpenAI protocol",
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
    ),
    Format(
        "mt-bench",
        DatasetKind.PROMPTS,
        (RowRole("turns", frozenset({"texts"}), ("turns",)),),
        "questions to compare models with, one or more turns each",
    ),
    Format(
        "instances",
        DatasetKind.SFT,
        (RowRole("instruction", TEXT, ("instruction",)), RowRole("instances", frozenset({"objects"}), ("instances",))),
        "an instruction with a list of inputs and outputs, as in self-instruct",
    ),
    Format(
        "alpaca",
        DatasetKind.SFT,
        (
            RowRole("instruction", TEXT, ("instruction", "instructions")),
            RowRole("output", TEXT, ("output", "response", "answer", "completion", "outputs", "target")),
            RowRole("input", TEXT, ("input", "context", "inputs"), required=False),
            RowRole("history", frozenset({"lists"}), ("history",), required=False),
            SYSTEM,
        ),
        "instruction, optional input, output",
    ),
    Format(
        "question-answer",
        DatasetKind.SFT,
        (
            RowRole("question", TEXT, ("question", "query", "problem")),
            RowRole("answer", TEXT, ("answer", "response", "solution", "answers", "output", "completion")),
            RowRole("context", TEXT, ("context", "passage"), required=False),
            SYSTEM,
        ),
        "a question and its answer",
    ),
    Format(
        "prompt-completion",
        DatasetKind.SFT,
        (
            RowRole("prompt", TEXT | TURNS, ("prompt", "input", "user", "human", "source")),
            RowRole("completion", ANSWER, ("completion", "response", "output", "assistant", "bot", "gpt", "answer", "target", "reply")),
            SYSTEM,
            TOOLS,
        ),
        "a prompt and the answer to it, as one exchange of a conversation",
    ),
    Format(
        "continuation",
        DatasetKind.SFT,
        (RowRole("prompt", TEXT, ("prompt",)), RowRole("completion", TEXT, ("completion",))),
        "a text and how it goes on, learned as it stands, without a chat template",
    ),
    Format(
        "text",
        DatasetKind.TEXT,
        (RowRole("text", TEXT, ("text", "content", "document", "body", "story")),),
        "documents, learned as they stand",
    ),
    Format(
        "prompts",
        DatasetKind.PROMPTS,
        (RowRole("prompt", TEXT, (*QUESTION_NAMES, "input")),),
        "prompts without answers, to compare models with",
    ),
)
BY_NAME = {format.name: format for format in FORMATS}


def columns_of(rows: Iterable[Row]) -> Columns:
    """What each column's values could serve as, counted, nulls left out; columns in order of appearance."""
    columns: Columns = {}
    for row in rows:
        if len(columns) + len(row) > MAX_COLUMNS:
            raise DatasetError(f"The rows have more than {MAX_COLUMNS:,} columns.", "Keep the ones with text.")
        for name, value in row.items():
            counts = columns.setdefault(name, Counter())
            if value is not None:
                counts[shapes_of(value)] += 1
    return columns


def shapes_of(value: Any) -> Shapes:
    """What `value` could serve as."""
    if isinstance(value, str):
        inner = unpacked(value)
        return (frozenset({"text"}) if inner is value else shapes_of(inner) | {"text"}) | _label_shape(value.strip().lower())
    if isinstance(value, (int, float)):
        return frozenset({"number"}) | _label_shape(str(value).lower())
    if isinstance(value, dict):
        return frozenset({"object", "turn"} if _turn_style(value) else {"object"})
    if isinstance(value, (list, tuple)):
        return _list_shapes(list(value))
    return frozenset({"text"})


def _label_shape(word: str) -> Shapes:
    return LABEL if word in ("true", "false", "0", "1", "0.0", "1.0") else frozenset()


def _list_shapes(items: list[Any]) -> Shapes:
    if items and all(isinstance(item, dict) for item in items):
        styles = {_turn_style(item) for item in items}
        if "" in styles:
            return frozenset({"objects"})
        return frozenset({"objects", "openai turns" if "openai" in styles else "sharegpt turns"})
    return frozenset({"texts" if items and all(isinstance(item, str) for item in items) else "lists"})


def _turn_style(turn: dict[str, Any]) -> str:
    if "role" in turn and ("content" in turn or "tool_calls" in turn or "function_call" in turn):
        return "openai"
    return "sharegpt" if "from" in turn and ("value" in turn or "content" in turn) else ""


def unpacked(cell: Any) -> Any:
    """The list or object inside a text cell, as CSV files have them: JSON or a Python literal; else the cell itself."""
    if not isinstance(cell, str) or cell[:1] not in ("[", "{") or cell[-1:] not in ("]", "}") or len(cell) > MAX_CELL_CHARS:
        return cell
    try:
        value = parse_json(cell)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return cell
    return value if isinstance(value, (list, dict)) else cell


def detect(columns: Columns, format: str | None = None, mapping: Mapping[str, str] | None = None) -> Layout:
    """The format of rows with these `columns`; `format` and `mapping` (role -> column) narrow the choice.

    Raises DatasetError when nothing fits, naming the columns and what would help.
    """
    given = dict(mapping or {})
    _check_given(columns, format, given)
    for candidate in [BY_NAME[format]] if format else FORMATS:
        if candidate.name == "continuation" and not format:
            continue  # the same columns as prompt-completion; a choice of the user, never a guess
        found = _fit(candidate, columns, given, strict=not format)
        if found is not None:
            return Layout(candidate, found)
    if len(columns) == 1 and not given and format in (None, "text"):
        name, counts = next(iter(columns.items()))
        if any("text" in shapes for shapes in counts):
            return Layout(BY_NAME["text"], {"text": name})
    if not columns:
        raise DatasetError("the rows have no columns.", 'Write each row as {"column": value, …}.')
    wanted = BY_NAME[format].role_names() if format else ["prompt", "completion"]
    example = " ".join(f"--map {role}=COLUMN" for role in wanted[:3])
    which = f"not fit the format {format!r}" if format else "fit no known format"
    raise DatasetError(
        f"the columns ({', '.join(list(columns)[:20])}) {'do ' * bool(format)}{which}.",
        f"Say which column is which: {example}.",
        columns=list(columns)[:100],
    )


def _check_given(columns: Columns, format: str | None, given: dict[str, str]) -> None:
    if format and format not in BY_NAME:
        raise DatasetError(f"there is no format {format!r}.", f"Choose one of {', '.join(BY_NAME)}.")
    for role, column in given.items():
        if column not in columns:
            raise DatasetError(f"there is no column {column!r}.", f"The columns are {', '.join(list(columns)[:20])}.")
        known = BY_NAME[format].role_names() if format else list(dict.fromkeys(name for f in FORMATS for name in f.role_names()))
        if role not in known:
            raise DatasetError(
                f"{role!r} is no part of {f'the format {format!r}' if format else 'any format'}.", f"The parts are {', '.join(known)}."
            )


def _fit(format: Format, columns: Columns, given: dict[str, str], strict: bool) -> dict[str, str] | None:
    if not set(given) <= set(format.role_names()):
        return None
    found = dict(given)
    by_key = {_key(name): name for name in reversed(list(columns))}
    for role in format.roles:
        if role.name in found:
            continue
        names = [by_key[alias] for alias in role.aliases if alias in by_key and by_key[alias] not in found.values()]
        column = next((name for name in names if not strict or _has_shape(columns[name], role)), None)
        if column is not None:
            found[role.name] = column
        elif role.required:
            return None
    return found


def _has_shape(counts: Counter[Shapes], role: RowRole) -> bool:
    """Half of the values look right; of labels nearly all, so that another number is none, and a slip of the pen is a row's problem."""
    total = counts.total()
    fitting = sum(count for shapes, count in counts.items() if shapes & role.shapes)
    if not total:
        return not role.required
    return fitting >= total * (0.9 if role.shapes == LABEL else 0.5)


def _key(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")
