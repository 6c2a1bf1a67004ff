"""How long an answer under a JSON schema can get, in tokens at most: so that a bounded answer is never cut in the middle.

Every token is at least one byte, so a bound on the bytes of compact JSON bounds the tokens. Knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.engine.protocol import Grammar

ESCAPED = 6  # bytes of a character written as \uXXXX
NUMBER = 400  # digits of the longest float in full
DEEPEST = 16


class Unbounded(Exception):
    """There is no longest text."""


def longest_answer(grammar: Grammar) -> int | None:
    """Bytes of the longest text that fits, one more for the end; None where there is none, or where this can't tell."""
    if grammar.kind != "json_schema":
        return None
    schema = json.loads(grammar.source)
    try:
        return _longest(schema, schema, 0) + 1
    except (Unbounded, KeyError, TypeError, ValueError):
        return None


def _longest(schema: Any, root: Mapping[str, Any], depth: int) -> int:
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        raise Unbounded
    if "$ref" in schema:
        return _longest(_resolve(schema["$ref"], root), root, depth + 1)
    if "const" in schema:
        return _written(schema["const"])
    if "enum" in schema:
        return max(_written(value) for value in schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return max(_longest(arm, root, depth + 1) for arm in schema[choice])
    kinds = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
    return max(_of_kind(kind, schema, root, depth) for kind in kinds)


def _of_kind(kind: Any, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> int:
    if kind in ("null", "boolean"):
        return 5
    if kind == "string" and "maxLength" in schema:
        return int(schema["maxLength"]) * ESCAPED + 2
    if kind in ("integer", "number"):
        return _number(kind, schema)
    if kind == "array" and "maxItems" in schema:
        return int(schema["maxItems"]) * (_longest(schema["items"], root, depth + 1) + 1) + 2
    if kind == "object" and schema.get("additionalProperties") is False:
        properties = schema.get("properties", {})
        return 2 + sum(_written(name) + 2 + _longest(value, root, depth + 1) for name, value in properties.items())
    raise Unbounded


def _number(kind: str, schema: Mapping[str, Any]) -> int:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    if kind == "number":
        return NUMBER
    if low is None or high is None:
        raise Unbounded
    return max(len(str(int(low))), len(str(int(high)))) + 1


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _written(value: Any) -> int:
    return len(json.dumps(value))
