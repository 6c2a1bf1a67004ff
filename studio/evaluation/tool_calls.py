"""Calls of tools in texts, compared with those of references: the right function, the right arguments, no call that is not needed.

A call is a JSON object with `name` and `arguments` (or `parameters`), wherever it stands: by itself, in a list, between the marks of a
chat template. Order does not count: several calls of one answer are made together.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from studio.evaluation.scores import CantSay

MOST_SIGNS, MOST_CALLS = 200_000, 64  # of one text
NO_CALLS = "neither the references nor the answer call a tool"
Call = tuple[str, str]  # name, and arguments as JSON with sorted keys


def calls(text: str) -> list[Call]:
    """The calls in a text, in their order; none in one that only speaks of tools."""
    decoder, found, place, text = json.JSONDecoder(), list[Call](), 0, text[:MOST_SIGNS]
    for start in re.finditer(r"[\[{]", text):
        if start.start() < place or len(found) >= MOST_CALLS:
            continue
        try:
            value, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        made = [_call(one) for one in (value if isinstance(value, list) else [value])]
        if made and all(made):
            found += [call for call in made if call]
            place = end
    return found[:MOST_CALLS]


def _call(value: Any) -> Call | None:
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]  # as OpenAI nests it
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, Mapping):
        return None
    return value["name"], json.dumps(arguments, sort_keys=True, ensure_ascii=False)


def same_calls(text: str, references: Sequence[str]) -> float | CantSay:
    """1 where the answer makes the calls of a reference, function and arguments alike; 0 also for a call where none is needed."""
    return _compared(text, references, lambda made: Counter(made))


def same_functions(text: str, references: Sequence[str]) -> float | CantSay:
    """The same of the functions' names alone."""
    return _compared(text, references, lambda made: Counter(name for name, _ in made))


def _compared(text: str, references: Sequence[str], seen: Any) -> float | CantSay:
    made, wanted = calls(text), [calls(reference) for reference in references]
    if not made and not any(wanted):
        return CantSay(NO_CALLS)
    return float(any(seen(made) == seen(one) for one in wanted))
