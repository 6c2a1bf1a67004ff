"""One row, taken apart: its turns, its answers, every text in it. Works on plain dicts, as they stand in rows.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]
Turn = dict[str, Any]

NAMES = frozenset({"role", "type", "id", "tool_call_id"})  # keys whose values are no text of a person's


def turns_of(row: Row) -> list[Turn]:
    """The conversation that is learned; [] for plain text and plain prompts."""
    if "messages" in row:
        return list(row["messages"])
    parts = (row.get("prompt"), row.get("chosen"), row.get("completion"))
    return [turn for part in parts if isinstance(part, list) for turn in part]


def answers_of(row: Row) -> list[str]:
    """What the assistant says: every turn of it that is no call of a tool, the worse answer of a preference included."""
    found = [*turns_of(row), *(row.get("rejected") or [])]
    answers = [turn["content"] for turn in found if turn["role"] == "assistant" and not turn.get("tool_calls")]
    if isinstance(row.get("completion"), str):
        answers.append(row["completion"])
    return answers


def question_of(row: Row) -> str:
    """What the user says, all turns of it."""
    asked = [turn["content"] for turn in turns_of(row) if turn["role"] == "user"]
    prompt = row.get("prompt")
    return " ".join([*asked, prompt] if isinstance(prompt, str) else asked)


def wanted_answers_of(row: Row) -> list[str]:
    """The answers to be imitated: neither a preference's worse one nor one that is marked bad."""
    if row.get("label") is False:
        return []
    return answers_of({**row, "rejected": None}) if row.get("rejected") else answers_of(row)


def is_identical(row: Row) -> bool:
    """Whether the chosen answer says the same as the rejected one, white space at the ends of each text aside."""
    chosen, rejected = ([_said(turn) for turn in row.get(side) or []] for side in ("chosen", "rejected"))
    return bool(chosen) and chosen == rejected


def _said(turn: Turn) -> Turn:
    return {key: value.strip() if isinstance(value, str) else value for key, value in turn.items() if value is not None}


def messages_of(row: Row) -> list[str]:
    """Everything that is said, a text per message; what every row may share (system, tools) left out."""
    found = [turn["content"] for turn in (*turns_of(row), *(row.get("rejected") or [])) if turn["role"] != "system"]
    found += [call for turn in turns_of(row) for call in _calls(turn)]
    return found + [row[key] for key in ("prompt", "completion", "text") if isinstance(row.get(key), str)]


def spoken_by_people(row: Row) -> list[str]:
    """What is written in a human language: no system, no tools."""
    found = [turn["content"] for turn in turns_of(row) if turn["role"] in ("user", "assistant")]
    return found + [row[key] for key in ("prompt", "completion", "text") if isinstance(row.get(key), str)]


def _calls(turn: Turn) -> Iterator[str]:
    for call in turn.get("tool_calls") or []:
        yield " ".join(strings_of(call))


def strings_of(value: Any) -> Iterator[str]:
    """Every text in a row or a part of it, but for roles and keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NAMES or not isinstance(item, str):
                yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same row with every text of `strings_of` changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: item if key in NAMES and isinstance(item, str) else with_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [with_strings(item, change) for item in value]
    return value
