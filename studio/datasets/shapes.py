"""What the values of a column could serve as: text, labels, conversations, lists."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from typing import Any

from studio.datasets.json_records import parse_json
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
NOTHING: Shapes = frozenset()


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
        shapes = _label_shape(value.strip().lower()) | {"text"}
        if inner is not value:
            shapes |= shapes_of(inner)
        return shapes
    if isinstance(value, (int, float)):
        return frozenset({"number"}) | _label_shape(str(value).lower())
    if isinstance(value, dict):
        if _turn_style(value):
            return frozenset({"object", "turn"})
        return frozenset({"object"})
    if isinstance(value, (list, tuple)):
        return _list_shapes(list(value))
    return frozenset({"text"})


def _label_shape(word: str) -> Shapes:
    if word in ("true", "false", "0", "1", "0.0", "1.0"):
        return LABEL
    return NOTHING


def _list_shapes(items: list[Any]) -> Shapes:
    if items and all(isinstance(item, dict) for item in items):
        styles = {_turn_style(item) for item in items}
        if "" in styles:
            return frozenset({"objects"})
        if "openai" in styles:
            return OPENAI | {"objects"}
        return SHAREGPT | {"objects"}
    if items and all(isinstance(item, str) for item in items):
        return frozenset({"texts"})
    return frozenset({"lists"})


def _turn_style(turn: dict[str, Any]) -> str:
    if "role" in turn and ("content" in turn or "tool_calls" in turn or "function_call" in turn):
        return "openai"
    if "from" in turn and ("value" in turn or "content" in turn):
        return "sharegpt"
    return ""


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
    if isinstance(value, (list, dict)):
        return value
    return cell
