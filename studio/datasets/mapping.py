"""Rows to examples: what each format makes of a row, as the JSON of studio.types.Example; preference rows are in preferences.py.

A row that can't be mapped raises RowError with the reason and a fix. Empty texts are fine: they are findings, not problems.
Works on plain dicts, because a file may have a million rows. Knows nothing of files.
"""

from __future__ import annotations

from studio.datasets.parts import (
    Example,
    answer,
    joined,
    optional,
    question,
    text,
    text_answer,
    with_history,
    with_system,
    with_tools,
)
from studio.datasets.preferences import continued, kto, openai_preference, preference, ranked, sharegpt_kto, without_prompt
from studio.datasets.records import Row
from studio.datasets.row_errors import RowError
from studio.datasets.row_messages import ROLES, Turn, as_text, turns_of
from studio.datasets.shapes import unpacked

ExampleJson = Example


def _exchange(row: Row, mapping: dict[str, str], user: str, role: str) -> list[ExampleJson]:
    turns: list[Turn] = [{"role": "user", "content": user}, *text_answer(row, mapping, role)]
    if "history" in mapping:
        turns = with_history(row, mapping, turns)
    if "system" in mapping:
        turns = with_system(row, mapping, turns)
    return [with_tools(row, mapping, {"messages": turns})]


def alpaca(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    user = joined(text(row, mapping, "instruction"), optional(row, mapping, "input"))
    return _exchange(row, mapping, user, "output")


def question_answer(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    user = joined(optional(row, mapping, "context"), text(row, mapping, "question"))
    return _exchange(row, mapping, user, "answer")


def instances(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    instruction, instances = text(row, mapping, "instruction"), unpacked(row.get(mapping["instances"]))
    if not isinstance(instances, list) or not instances or not all(isinstance(instance, dict) for instance in instances):
        raise RowError(f"The column {mapping['instances']!r} holds no list of instances.", 'Write [{"input": "…", "output": "…"}].')
    names = {"output": "output", "input": "input"}
    return [
        made
        for instance in instances
        for made in _exchange(instance, {"output": "output"}, joined(instruction, optional(instance, names, "input")), "output")
    ]


def _conversation(row: Row, mapping: dict[str, str], role: str) -> list[ExampleJson]:
    value = row.get(mapping[role])
    if value is None:
        raise RowError(f"There is no value in the column {mapping[role]!r}.", "Fill it in, or leave the row out.")
    return [with_tools(row, mapping, {"messages": with_system(row, mapping, turns_of(value, mapping[role]))})]


def messages(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return _conversation(row, mapping, "messages")


def conversations(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return _conversation(row, mapping, "conversations")


def prompt_completion(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    """One conversation, of which only the completion is learned: the answers of the prompt are marked, unless they say otherwise."""
    prompt = question(row, mapping)
    if len(prompt) == 1 and "input" in mapping:
        prompt = [{**prompt[0], "content": joined(prompt[0]["content"], optional(row, mapping, "input"))}]
    completion = without_prompt(prompt, answer(row, mapping, "completion"))
    asked = with_history(row, mapping, [_unlearned(turn) for turn in prompt])
    return [with_tools(row, mapping, {"messages": [*with_system(row, mapping, asked), *completion]})]


def _unlearned(turn: Turn) -> Turn:
    if turn["role"] == "assistant":
        return {**turn, "train": turn.get("train", False)}
    return turn


def continuation(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return [{"prompt": text(row, mapping, "prompt"), "completion": text(row, mapping, "completion")}]


def document(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return [{"text": text(row, mapping, "text")}]


def prompts(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    asked = with_system(row, mapping, question(row, mapping))
    return [with_tools(row, mapping, {"messages": asked})]


def mt_bench(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    column = mapping["turns"]
    turns = unpacked(row.get(column))
    if not isinstance(turns, list) or not turns:
        raise RowError(f"The column {column!r} holds no list of questions.", 'Write ["first question", "second question"].')
    return [{"messages": [{"role": "user", "content": as_text(turn, column) or ""} for turn in turns]}]


__all__ = [
    "ROLES",
    "ExampleJson",
    "RowError",
    "alpaca",
    "continuation",
    "continued",
    "conversations",
    "document",
    "instances",
    "kto",
    "messages",
    "mt_bench",
    "openai_preference",
    "preference",
    "prompt_completion",
    "prompts",
    "question_answer",
    "ranked",
    "sharegpt_kto",
]
