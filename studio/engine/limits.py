"""How long an answer under a JSON schema can get, in tokens at most: so that a bounded answer is never cut in the middle.

Every token is at least one byte, so a bound on the bytes of compact JSON bounds the tokens. Knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.engine.protocol import Grammar

MOST_VISITED = 10_000  # parts of a schema that are looked at, each reference once
ESCAPED = 6  # bytes of a character written as \uXXXX
NUMBER = 400  # digits of the longest float in full
DEEPEST = 16


class Unbounded(Exception):
    """There is no longest text."""


def longest_answer(grammar: Grammar) -> int | None:
    """Bytes of the longest text that fits, one more for the end; None where there is none, or where this can't tell."""
    if grammar.kind != "json_schema":
        return None
    try:
        schema = json.loads(grammar.source)
        return _Longest(schema).of(schema, 0) + 1
    except (Unbounded, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


class _Longest:
    """One schema being measured. What a reference leads to is remembered: a few lines may refer to each other in millions of ways."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._visited = 0
        self._known: dict[tuple[str, int], int] = {}  # by reference and depth, which ends what refers to itself

    def of(self, schema: Any, depth: int) -> int:
        self._visited += 1
        if not isinstance(schema, Mapping) or depth > DEEPEST or self._visited > MOST_VISITED:
            raise Unbounded
        if "$ref" in schema:
            return self._referred(str(schema["$ref"]), depth + 1)
        if "const" in schema:
            return _written(schema["const"])
        if "enum" in schema:
            return max(_written(value) for value in schema["enum"])
        for choice in ("anyOf", "oneOf"):
            if choice in schema:
                return max(self.of(arm, depth + 1) for arm in schema[choice])
        kinds = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
        return max(self._of_kind(kind, schema, depth) for kind in kinds)

    def _of_kind(self, kind: Any, schema: Mapping[str, Any], depth: int) -> int:
        if kind in ("null", "boolean"):
            return 5
        if kind == "string" and "maxLength" in schema:
            return int(schema["maxLength"]) * ESCAPED + 2
        if kind in ("integer", "number"):
            return _number(kind, schema)
        if kind == "array" and "maxItems" in schema:
            return int(schema["maxItems"]) * (self.of(schema["items"], depth + 1) + 1) + 2
        if kind == "object" and schema.get("additionalProperties") is False:
            properties = schema.get("properties", {})
            return 2 + sum(_written(name) + 2 + self.of(value, depth + 1) for name, value in properties.items())
        raise Unbounded

    def _referred(self, reference: str, depth: int) -> int:
        key = (reference, depth)
        if key not in self._known:
            self._known[key] = self.of(_resolve(reference, self._root), depth)
        return self._known[key]


def _number(kind: str, schema: Mapping[str, Any]) -> int:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    if kind == "number":
        return NUMBER
    if low is None or high is None:
        raise Unbounded
    return max(len(str(int(low))), len(str(int(high)))) + 1


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _written(value: Any) -> int:
    return len(json.dumps(value))
