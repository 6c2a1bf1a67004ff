"""The fields of a chat request that are about tools, checked. Knows no templates and no grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from studio.engine import grammar_limits
from studio.engine.protocol import Grammar, Tools, bad_request

MOST_TOOLS = 128  # as OpenAI's
MOST_BYTES = 256 * 1024  # of all tools as JSON
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
FIX = 'Give {"type": "function", "function": {"name": …, "parameters": {…}}}.'
CHOICES = 'Give "auto", "none", "required" or {"type": "function", "function": {"name": …}}.'


def read_tools(
    tools: Sequence[Any] | None, tool_choice: Any, parallel_tool_calls: bool | None, tools_as_instruction: bool | None
) -> Tools | None:
    """None where there are no tools, or where none may be called. Raises EngineError 400 naming the field."""
    definitions = tuple(_definition(number, tool) for number, tool in enumerate(tools or ()))
    names = tuple(tool["function"]["name"] for tool in definitions)
    if len(definitions) > MOST_TOOLS:
        raise bad_request(f"There are {len(definitions)} tools, more than {MOST_TOOLS}.", "Leave some out.", param="tools")
    if len(json.dumps(definitions)) > MOST_BYTES:
        raise bad_request(f"The tools have more than {MOST_BYTES // 1024} KiB.", "Shorten their descriptions or schemas.", param="tools")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise bad_request(f"Two tools have the name {twice}.", "Rename one of them.", param="tools")
    choice, chosen = _choice(tool_choice, names)
    if choice == "none" or not definitions:
        return None
    return Tools(
        definitions,
        (chosen,) if chosen else names,
        "required" if choice == "required" else "auto",
        bool(chosen),
        parallel_tool_calls is not False,
        bool(tools_as_instruction),
    )


def _definition(number: int, tool: Any) -> dict[str, Any]:
    place = f"tools.{number}"
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else type(tool).__name__
        raise bad_request(f"{place} is no function but {str(kind)[:50]!r}.", FIX, param=place, code="unsupported_tool")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise bad_request(f"{place}.function is no object.", FIX, param=f"{place}.function")
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise bad_request(f"{place}.function.name is no name.", f"It must fit {NAME.pattern}.", param=f"{place}.function.name")
    if not isinstance(function.get("description", ""), str | None):
        raise bad_request(f"{place}.function.description is no text.", FIX, param=f"{place}.function.description")
    parameters = function.get("parameters")
    if parameters is not None and not (isinstance(parameters, Mapping) and parameters.get("type", "object") == "object"):
        said = f"{place}.function.parameters is no JSON schema of an object."
        raise bad_request(said, 'Give {"type": "object", "properties": {…}}.', param=f"{place}.function.parameters")
    if parameters and (reason := grammar_limits.excess(Grammar("json_schema", json.dumps(parameters)))):
        said = f"{place}.function.parameters can't be used: {reason}."
        raise bad_request(said, "Make it smaller.", param=f"{place}.function.parameters")
    return {**tool, "type": "function", "function": dict(function)}


def _choice(value: Any, names: Sequence[str]) -> tuple[str, str]:
    """ "auto", "none" or "required", and the function that was chosen by name or ""."""
    if value is None or value in ("auto", "none"):
        return value or "auto", ""
    if not names:
        raise bad_request(
            "tool_choice asks for a call, but there are no tools.", "Give tools, or leave tool_choice out.", param="tool_choice"
        )
    if value == "required" or value == "any":  # "any" is Mistral's word for it
        return "required", ""
    function = value.get("function") if isinstance(value, Mapping) and value.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise bad_request("tool_choice is none of its forms.", CHOICES, param="tool_choice")
    if name not in names:
        raise bad_request(
            f"tool_choice names {name[:100]!r}, which is none of the tools.", f"Name one of {', '.join(names[:20])}.", param="tool_choice"
        )
    return "required", name
