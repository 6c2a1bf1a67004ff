"""What an answer of chat may be, from the texts that a person writes: its form, and the tools that it may call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.engine.protocol import Grammar
from studio.engine.tool_fields import read_tools
from studio.errors import StudioError


def form_of(grammar: str | None, json_schema: str | Mapping[str, Any] | None) -> Grammar | None:
    """The form an answer must have, from either argument."""
    if grammar and json_schema:
        raise StudioError("An answer can't follow both a grammar and a JSON schema.", "Give one of them.")
    if grammar:
        return Grammar("gbnf", grammar)
    if not json_schema:
        return None
    schema: Any = json_schema
    if isinstance(json_schema, str):
        try:
            schema = json.loads(json_schema)
        except ValueError as exc:
            raise StudioError(f"The JSON schema is no JSON ({exc}).", "Correct it at that place.") from None
    if not isinstance(schema, Mapping):
        raise StudioError("The JSON schema must be a JSON object.", 'Start from {"type": "object", "properties": {…}}.')
    return Grammar("json_schema", json.dumps(dict(schema)))


def tools_of(text: str) -> list[dict[str, Any]]:
    """Tools from a JSON list in OpenAI's shape; functions alone and a single one are taken too. Raises StudioError naming the place."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise StudioError(f"The tools are no JSON ({exc}).", "Correct them at that place.") from None
    listed = found if isinstance(found, list) else [found]
    wrapped = [one if not isinstance(one, dict) or "function" in one else {"type": "function", "function": one} for one in listed]
    tools = read_tools(wrapped, None, None, None)
    if tools is None:
        raise StudioError("There is no tool in the list.", "Leave the field empty for none.")
    return list(tools.definitions)
