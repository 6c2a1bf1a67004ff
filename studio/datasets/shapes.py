"""What the values of a column could serve as: text, labels, conversations, lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from studio import python_source
from studio.datasets.json_records import parse_json
from studio.datasets.labels import read_label
from studio.datasets.records import MAX_COLUMNS, Row
from studio.errors import DatasetError

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
ASKED = frozenset({"asked turns"})  # a conversation without an answer
RANKED = frozenset({"ranked"})  # answers with a rank or a score each
NUMBERS = frozenset({"numbers"})
NOTHING: Shapes = frozenset()

ANSWER_KEYS = ("answer", "response", "text", "output", "completion", "content", "value", "generated_text")
RANK_KEYS = ("rank", "ranking")
SCORE_KEYS = ("score", "overall_score", "rating", "reward", "overall_rating")
ASKING_ROLES = frozenset({"user", "human", "system", "developer", "prompter", "customer"})

# tokens of a list as Python or numpy prints it
PRINTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\w.+-]+|\s+|.""", re.DOTALL)
QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
NUMPY = re.compile(r"\barray\(|,\s*dtype=\w+\)|\)(?=\s*(?:[,}\]]|$))")


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
    label = LABEL if read_label(value) is not None else NOTHING
    if isinstance(value, str):
        inner = unpacked(value)
        shapes = label | {"text"}
        if inner is not value:
            shapes |= shapes_of(inner)
        return shapes
    if isinstance(value, (int, float)):
        return frozenset({"number"}) | label
    if isinstance(value, dict):
        if _turn_style(value):
            return frozenset({"object", "turn"})
        return frozenset({"object"})
    if isinstance(value, (list, tuple)):
        return _list_shapes(list(value))
    return frozenset({"text"})


def _list_shapes(items: list[Any]) -> Shapes:
    if items and all(isinstance(item, dict) for item in items):
        return frozenset({"objects"}) | _turns_shape(items)
    if items and all(isinstance(item, str) for item in items):
        return frozenset({"texts"})
    if items and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        return NUMBERS | {"lists"}
    return frozenset({"lists"})


def _turns_shape(items: list[dict[str, Any]]) -> Shapes:
    styles = {_turn_style(item) for item in items}
    if "" in styles:
        is_ranked = all(any(key in item for key in ANSWER_KEYS) and any(key in item for key in (*RANK_KEYS, *SCORE_KEYS)) for item in items)
        return RANKED if is_ranked and len(items) > 1 else NOTHING
    speakers = {str(item.get("role", item.get("from"))).strip().lower() for item in items}
    asked = ASKED if speakers <= ASKING_ROLES else NOTHING
    if "openai" in styles:
        return OPENAI | asked
    return SHAREGPT | asked


def _turn_style(turn: dict[str, Any]) -> str:
    if "role" in turn and ("content" in turn or "tool_calls" in turn or "function_call" in turn):
        return "openai"
    if "from" in turn and ("value" in turn or "content" in turn):
        return "sharegpt"
    return ""


def unpacked(cell: Any) -> Any:
    """The list or object inside a text cell, as CSV files have them: JSON, or as Python and numpy print it; else the cell itself."""
    if not isinstance(cell, str) or len(cell) > MAX_CELL_CHARS:
        return cell
    text = cell.strip()
    if text.startswith("array("):
        value = _printed(text)
        return cell if value is None else value
    if text[:1] not in ("[", "{") or text[-1:] not in ("]", "}"):
        return cell
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        value = _printed(text)
    if isinstance(value, (list, dict)):
        return value
    return cell


def _printed(text: str) -> Any:
    """What Python's repr, or numpy's, stands for; None where it is neither.

    Numpy prints no commas between the items of an array; to Python two texts side by side would be one.
    """
    if "array(" in text:
        parts = QUOTED.split(text)  # every other one is a quoted text
        parts[::2] = [NUMPY.sub("", part) for part in parts[::2]]
        text = "".join(parts)
    pieces: list[str] = []
    ended, blank = False, False
    for token in PRINTED.findall(text):
        if token.isspace():
            blank = True
            continue
        if ended and blank and (token[0] in "'\"[{" or token[0].isalnum() or token[0] in "+-."):
            pieces.append(",")
        elif blank:
            pieces.append(" ")
        pieces.append(token)
        ended, blank = token[0] in "'\"" or token[-1] in "]}" or token[-1].isalnum() or token[-1] == ".", False
    try:
        value = python_source.literal("".join(pieces))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if "..." not in text or not _is_cut(value) else None


def _is_cut(value: Any) -> bool:
    """Whether the middle was left out when it was printed."""
    rest = [value]
    while rest:
        each = rest.pop()
        if each is ...:
            return True
        if isinstance(each, dict):
            rest += each.values()
        elif isinstance(each, (list, tuple)):
            rest += each
    return False
