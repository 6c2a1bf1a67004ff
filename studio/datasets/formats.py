"""What a file's columns mean: the known formats, and which of them a file is. Knows rows only by their columns' shapes."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from studio.datasets.reading import Row, parse_json
from studio.errors import DatasetError

MAX_CELL_CHARS = 8 * 1024**2  # of a cell that holds JSON or a Python literal

TEXT = frozenset({"text", "number"})
OPENAI = frozenset({"openai turns"})
SHAREGPT = frozenset({"sharegpt turns"})
TURNS = OPENAI | SHAREGPT
ANSWER = TEXT | TURNS | {"turn"}
LABEL = frozenset({"label"})
ANY = frozenset({"tools"}) | TEXT | TURNS | {"objects", "object", "texts", "turn", "label"}


@dataclass(frozen=True)
class Role:
    """A part of a row, the shapes it may have, and the column names by which it is known."""

    name: str
    shapes: frozenset[str]
    aliases: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Format:
    """A way to lay out rows. `kind` is what the rows are for."""

    name: str
    kind: str
    roles: tuple[Role, ...]
    description: str

    def role_names(self) -> list[str]:
        return [role.name for role in self.roles]


@dataclass(frozen=True)
class Layout:
    """A format and the column of each of its roles."""

    format: Format
    mapping: dict[str, str]


SYSTEM = Role("system", TEXT, ("system", "system_prompt", "system_message"), required=False)
TOOLS = Role("tools", ANY, ("tools", "functions"), required=False)
QUESTION_NAMES = ("prompt", "question", "instruction", "query")

# in the order in which they are tried: the more a format asks for, the earlier
FORMATS = (
    Format(
        "sharegpt-preference",
        "preference",
        (
            Role("conversations", TURNS, ("conversations", "conversation", "messages")),
            Role("chosen", ANSWER, ("chosen",)),
            Role("rejected", ANSWER, ("rejected",)),
            SYSTEM,
            TOOLS,
        ),
        "a conversation, with a better and a worse answer to its end",
    ),
    Format(
        "preference",
        "preference",
        (
            Role("prompt", TEXT | TURNS, QUESTION_NAMES, required=False),
            Role("chosen", ANSWER, ("chosen", "chosen_response", "answer_chosen")),
            Role("rejected", ANSWER, ("rejected", "rejected_response", "answer_rejected")),
            Role("input", TEXT, ("input",), required=False),
            SYSTEM,
            TOOLS,
        ),
        "a prompt with a better and a worse answer",
    ),
    Format(
        "sharegpt-kto",
        "unpaired-preference",
        (
            Role("conversations", TURNS, ("conversations", "conversation", "messages")),
            Role("label", LABEL, ("label", "kto_tag")),
            SYSTEM,
            TOOLS,
        ),
        "a conversation whose last answer is marked good or bad",
    ),
    Format(
        "kto",
        "unpaired-preference",
        (
            Role("prompt", TEXT | TURNS, QUESTION_NAMES),
            Role("completion", ANSWER, ("completion", "response", "output", "answer")),
            Role("label", LABEL, ("label", "kto_tag")),
            SYSTEM,
        ),
        "a prompt and an answer marked good or bad",
    ),
    Format(
        "messages",
        "sft",
        (Role("messages", OPENAI, ("messages", "conversation", "conversations", "dialogue", "dialog", "chat", "turns")), SYSTEM, TOOLS),
        "a conversation with role and content, as in the OpenAI protocol",
    ),
    Format(
        "sharegpt",
        "sft",
        (
            Role("conversations", SHAREGPT, ("conversations", "conversation", "messages", "dialogue", "dialog", "chat", "items")),
            SYSTEM,
            TOOLS,
        ),
        "a conversation with from and value, as in ShareGPT",
    ),
    Format(
        "mt-bench",
        "prompts",
        (Role("turns", frozenset({"texts"}), ("turns",)),),
        "questions to compare models with, one or more turns each",
    ),
    Format(
        "instances",
        "sft",
        (Role("instruction", TEXT, ("instruction",)), Role("instances", frozenset({"objects"}), ("instances",))),
        "an instruction with a list of inputs and outputs, as in self-instruct",
    ),
    Format(
        "alpaca",
        "sft",
        (
            Role("instruction", TEXT, ("instruction", "instructions")),
            Role("output", TEXT, ("output", "response", "answer", "completion", "outputs", "target")),
            Role("input", TEXT, ("input", "context", "inputs"), required=False),
            Role("history", frozenset({"lists"}), ("history",), required=False),
            SYSTEM,
        ),
        "instruction, optional input, output",
    ),
    Format(
        "question-answer",
        "sft",
        (
            Role("question", TEXT, ("question", "query", "problem")),
            Role("answer", TEXT, ("answer", "response", "solution", "answers", "output", "completion")),
            Role("context", TEXT, ("context", "passage"), required=False),
            SYSTEM,
        ),
        "a question and its answer",
    ),
    Format(
        "prompt-completion",
        "sft",
        (
            Role("prompt", TEXT | TURNS, ("prompt", "input", "user", "human", "source")),
            Role("completion", ANSWER, ("completion", "response", "output", "assistant", "bot", "gpt", "answer", "target", "reply")),
            SYSTEM,
            TOOLS,
        ),
        "a prompt and the answer to it, as one exchange of a conversation",
    ),
    Format(
        "continuation",
        "sft",
        (Role("prompt", TEXT, ("prompt",)), Role("completion", TEXT, ("completion",))),
        "a text and how it goes on, learned as it stands, without a chat template",
    ),
    Format("text", "text", (Role("text", TEXT, ("text", "content", "document", "body", "story")),), "documents, learned as they stand"),
    Format(
        "prompts",
        "prompts",
        (Role("prompt", TEXT, (*QUESTION_NAMES, "input")),),
        "prompts without answers, to compare models with",
    ),
)
BY_NAME = {format.name: format for format in FORMATS}


def columns_of(rows: Iterable[Row]) -> dict[str, Counter[str]]:
    """Each column's shapes and how often they occur, nulls left out; columns in order of appearance."""
    columns: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.items():
            shapes = columns.setdefault(name, Counter())
            for shape in shapes_of(value):
                shapes[shape] += 1
            shapes["all"] += value is not None
    return columns


def shapes_of(value: Any) -> list[str]:
    """What `value` could serve as."""
    if value is None:
        return []
    if isinstance(value, bool):
        return ["label", "text"]
    if isinstance(value, (int, float)):
        return ["number", "label"] if value in (0, 1) else ["number"]
    if isinstance(value, str):
        inner = unpacked(value)
        found = shapes_of(inner) if inner is not value else []
        return [*found, "text", *(["label"] if value.strip().lower() in ("true", "false", "0", "1") else [])]
    if isinstance(value, dict):
        return ["turn", "object"] if _turn_style(value) else ["object"]
    if isinstance(value, (list, tuple)):
        return _list_shapes(list(value))
    return ["text"]


def _list_shapes(items: list[Any]) -> list[str]:
    if items and all(isinstance(item, dict) for item in items):
        styles = {_turn_style(item) for item in items}
        style = styles.pop() if len(styles) == 1 else ("openai" if styles == {"openai", "sharegpt"} else "")
        return ["objects", *([f"{style} turns"] if style else [])]
    if items and all(isinstance(item, str) for item in items):
        return ["texts"]
    return ["lists"]


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


def detect(columns: Mapping[str, Counter[str]], format: str | None = None, mapping: Mapping[str, str] | None = None) -> Layout:
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
    texts = [name for name, shapes in columns.items() if shapes["text"] and shapes["all"]]
    if len(columns) == 1 and texts and not given and format in (None, "text"):
        return Layout(BY_NAME["text"], {"text": texts[0]})
    names = ", ".join(list(columns)[:20]) or "none"
    wanted = BY_NAME[format].role_names() if format else ["prompt", "completion"]
    example = " ".join(f"--map {role}=COLUMN" for role in wanted[:3])
    raise DatasetError(
        f"The columns ({names}) fit no known format{f' {format!r}' if format else ''}.", f"Say which column is which: {example}."
    )


def _check_given(columns: Mapping[str, Counter[str]], format: str | None, given: dict[str, str]) -> None:
    if format and format not in BY_NAME:
        raise DatasetError(f"There is no format {format!r}.", f"Choose one of {', '.join(BY_NAME)}.")
    for role, column in given.items():
        if column not in columns:
            raise DatasetError(f"There is no column {column!r}.", f"The columns are {', '.join(list(columns)[:20])}.")
        known = BY_NAME[format].role_names() if format else list(dict.fromkeys(name for f in FORMATS for name in f.role_names()))
        if role not in known:
            raise DatasetError(
                f"{role!r} is no part of {f'the format {format!r}' if format else 'any format'}.", f"The parts are {', '.join(known)}."
            )


def _fit(format: Format, columns: Mapping[str, Counter[str]], given: dict[str, str], strict: bool) -> dict[str, str] | None:
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


def _has_shape(shapes: Counter[str], role: Role) -> bool:
    """Half of the values look right; a label must always."""
    fitting = max((shapes[shape] for shape in role.shapes), default=0)
    if not shapes["all"]:
        return not role.required
    return fitting == shapes["all"] if role.shapes == LABEL else fitting * 2 >= shapes["all"]


def _key(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")
