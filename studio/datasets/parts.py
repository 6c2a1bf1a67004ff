"""Parts of a row by their roles: a text, a question, an answer, a system message, earlier turns, tools. Knows no formats."""

from __future__ import annotations

from typing import Any

from studio.datasets.records import Row
from studio.datasets.row_errors import RowError
from studio.datasets.row_messages import Turn, as_text, content_of, tools_of, turns_of
from studio.datasets.shapes import unpacked
from studio.datasets.telling import is_blank

Example = dict[str, Any]  # the JSON of studio.types.Example


def text(row: Row, mapping: dict[str, str], role: str) -> str:
    """The text of a required role."""
    column = mapping[role]
    value = row.get(column)
    if type(value) is str:
        return value
    found = as_text(value, column)
    if found is None:
        raise RowError(f"There is no value in the column {column!r}.", "Fill it in, or leave the row out.")
    return found


def optional(row: Row, mapping: dict[str, str], role: str) -> str:
    """The text of a role that may be missing; ""."""
    column = mapping.get(role)
    if column is None:
        return ""
    value = row.get(column)
    if type(value) is str:
        return value
    return as_text(value, column) or ""


def answer(row: Row, mapping: dict[str, str], role: str) -> list[Turn]:
    """An answer as messages: a text, one message, or several; with the reasoning of a column of its own."""
    column = mapping[role]
    given = row.get(column)
    value = unpacked(given)
    if isinstance(given, str) and not is_turns(value):
        value = given  # an answer that is written in JSON
    if not isinstance(value, (list, dict)) or not value:
        return text_answer(row, mapping, role)
    if _is_content(value):
        turns = turns_of([{"role": "assistant", "content": value}], column)
    else:
        turns = turns_of(value, column)
    return _with_thought(row, mapping, turns, column)


def text_answer(row: Row, mapping: dict[str, str], role: str) -> list[Turn]:
    """An answer that is a text, whatever it looks like."""
    column = mapping[role]
    said = text(row, mapping, role)
    if "reasoning" not in mapping and "<think>" not in said:
        return [{"role": "assistant", "content": said}]
    turns = turns_of([{"role": "assistant", "content": said}], column)
    return _with_thought(row, mapping, turns, column)


def _with_thought(row: Row, mapping: dict[str, str], turns: list[Turn], column: str) -> list[Turn]:
    thought = optional(row, mapping, "reasoning")
    last = turns[-1]
    if is_blank(thought):
        return turns
    if last["role"] != "assistant" or (last.get("reasoning") or thought).split() != thought.split():
        raise RowError(f"The columns {column!r} and {mapping['reasoning']!r} hold different reasoning.", "Keep one of them.")
    if not last["content"].strip() and not last.get("tool_calls"):
        raise RowError(f"There is reasoning in {mapping['reasoning']!r} without an answer.", "Add the answer, or leave the row out.")
    return [*turns[:-1], {**last, "reasoning": thought}]


def is_turns(value: Any) -> bool:
    """Whether a value is a message or a list of messages."""
    turns = [value] if isinstance(value, dict) else value
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)


def _is_content(value: Any) -> bool:
    """Whether a list holds the typed parts of one content."""
    return isinstance(value, list) and all(isinstance(part, dict) and "type" in part and "role" not in part for part in value)


def question(row: Row, mapping: dict[str, str], role: str = "prompt") -> list[Turn]:
    given = row.get(mapping[role])
    value = unpacked(given)
    if is_turns(value) and isinstance(value, list):
        return turns_of(value, mapping[role])
    if isinstance(given, list) and value and _is_content(value):
        content, _ = content_of(value, f"The column {mapping[role]!r}")
        return [{"role": "user", "content": content or ""}]
    return [{"role": "user", "content": text(row, mapping, role)}]


def with_system(row: Row, mapping: dict[str, str], messages: list[Turn]) -> list[Turn]:
    system = optional(row, mapping, "system")
    if not system or is_blank(system):
        return messages
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"].split() != system.split():
        problem = f"The column {mapping['system']!r} and the system message of the conversation differ."
        raise RowError(problem, "Keep one of them.")
    return messages


def with_tools(row: Row, mapping: dict[str, str], example: Example) -> Example:
    tools = tools_of(row, mapping)
    if tools:
        return {**example, "tools": tools}
    return example


def with_history(row: Row, mapping: dict[str, str], turns: list[Turn]) -> list[Turn]:
    """The turns behind the earlier ones of a column, if there is one."""
    column = mapping.get("history")
    if column is None:
        return turns
    earlier = unpacked(row.get(column))
    if is_blank(earlier):
        return turns
    return [*_history(earlier, column), *turns]


def _history(history: Any, column: str) -> list[Turn]:
    """Earlier exchanges: [[question, answer], …], or messages."""
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        return turns_of(history, column)
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError(f"The column {column!r} holds no pairs.", "Write [[question, answer], …], or leave it out.")
    said = [
        {"role": role, "content": as_text(said, column) or ""}
        for pair in history
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return turns_of(said, column) if said else []


def joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
