"""Answers that were made elsewhere: one JSON object a line, matched to prompts by their ID, or by their order without IDs.

Takes FastChat's `choices[0].turns` as it is. Knows nothing of who made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.errors import DatasetError
from studio.evaluation.verdicts import json_lines, raise_problems
from studio.records import ComparisonPrompt

FAILED = "$ERROR$"  # FastChat's mark of an answer that could not be had
IDS = ("prompt_id", "id", "question_id")
TEXTS = ("answer", "text", "output", "prediction", "completion", "response")


def read(path: Path, prompts: Sequence[ComparisonPrompt]) -> dict[str, list[str]]:
    """The answer of each prompt turn by turn; [] where the file has none. Raises DatasetError with every bad line."""
    given: dict[str, list[str]] = {}
    problems: list[dict[str, Any]] = []
    for line, row in json_lines(path):
        turns = _turns(row)
        if turns is None:
            problems.append({"line": line, "problem": "no answer", "fix": 'Write {"prompt_id": "…", "answer": "…"}.'})
        else:
            given[_id(row, prompts, len(given))] = turns
    raise_problems(path, problems)
    found = {prompt["id"]: given.get(prompt["id"], []) for prompt in prompts}
    if not any(found.values()):
        raise DatasetError(f"{path.name} answers none of the prompts.", "Its prompt_id must be the id of a prompt.")
    return found


def _id(row: Mapping[str, Any], prompts: Sequence[ComparisonPrompt], number: int) -> str:
    given = next((row[name] for name in IDS if row.get(name) is not None), None)
    if given is not None:
        return str(given)
    if number < len(prompts):
        return prompts[number]["id"]
    return f"line {number + 1}"


def _turns(row: Any) -> list[str] | None:
    if not isinstance(row, dict):
        return None
    choices = row.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        row = choices[0]
    if isinstance(row.get("turns"), list) and row["turns"] and all(isinstance(turn, str) for turn in row["turns"]):
        return list(row["turns"])
    text = next((row[name] for name in TEXTS if isinstance(row.get(name), str)), None)
    return None if text is None else [text]
