"""Files of predictions with their references, which `studio metrics` measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.errors import DatasetError
from studio.evaluation.scores import Pair
from studio.evaluation.verdicts import json_lines, raise_problems


def read(path: Path) -> list[Pair]:
    """Lines `{"prediction", "reference" | "references"}`. Raises DatasetError with every bad line."""
    pairs, problems = [], []
    for line, row in json_lines(path):
        problem = _problem(row)
        if problem:
            problems.append({"line": line, "problem": problem, "fix": 'Write {"prediction": "…", "reference": "…"} or "references": […].'})
        else:
            pairs.append((row["prediction"], _references(row)))
    raise_problems(path, problems)
    if not pairs:
        raise DatasetError(f"{path.name} holds no predictions.", 'Write one JSON object a line: {"prediction", "reference"}.')
    return pairs


def _problem(row: Any) -> str:
    if not isinstance(row, dict):
        return "not a JSON object"
    if not isinstance(row.get("prediction"), str):
        return "prediction is missing or no text"
    references = _references(row)
    if references and all(isinstance(text, str) for text in references):
        return ""
    return "reference is missing or no text"


def _references(row: Mapping[str, Any]) -> list[Any]:
    given = row.get("references", row.get("reference"))
    if isinstance(given, list):
        return list(given)
    return [text for text in (given,) if text is not None]
