"""How large a schema, grammar or regular expression from outside may be, looked at before llguidance sees it.

llguidance bounds its own work by fuel: within these sizes none of the hostile grammars tried takes it more than a few seconds, without
the interpreter's lock, and each step of an answer some hundredths of one. Only properties of JSON schemas cost it the square of their
number, which is why objects are counted by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from studio.engine.protocol import Grammar

MOST_BYTES = {"json_schema": 1_000_000, "gbnf": 200_000, "regex": 200_000, "calls": 1_000_000}
MOST_VALUES = 50_000  # of a schema: names, texts, numbers, lists, objects
MOST_OBJECTS = 4_000  # of these
MOST_NESTED = 100
LARGEST_WHOLE = 2**63  # llguidance computes with 64 bits


def excess(grammar: Grammar) -> str:
    """What of it is too large, as the end of a sentence; "" where nothing is."""
    most, size = MOST_BYTES[grammar.kind], len(grammar.source.encode("utf-8", "replace"))
    if size > most:
        return f"it has {size:,} bytes, and {most:,} is the limit"
    if grammar.kind != "json_schema":
        return ""
    return _of_schema(json.loads(grammar.source))


def _of_schema(schema: Any) -> str:
    values = objects = depth = 0
    layer = [schema]
    while layer:
        depth += 1
        values += len(layer)
        objects += sum(isinstance(value, dict) for value in layer)
        if any(_is_too_large(value) for value in layer):
            return "it holds a number of more than 63 bits"
        for found, most, what in ((values, MOST_VALUES, "values"), (objects, MOST_OBJECTS, "objects"), (depth, MOST_NESTED, "levels")):
            if found > most:
                return f"it has more than {most:,} {what}"
        layer = [inner for value in layer for inner in _parts(value)]
    return ""


def _is_too_large(value: Any) -> bool:
    return isinstance(value, int) and not -LARGEST_WHOLE <= value < LARGEST_WHOLE


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list):
        return value
    return ()
