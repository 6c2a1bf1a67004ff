"""Messages as chat templates get them: plain dicts without empty keys. Knows no templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.datasets.reasoning import USUAL
from studio.errors import DatasetError
from studio.types import Message

Turn = dict[str, Any]
Tools = list[dict[str, Any]] | None


def turn_of(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def probe_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}}


def calling(name: str) -> Turn:
    # Mistral's templates refuse any ID that has not nine letters and digits
    call = {"type": "function", "id": "probe1111", "function": {"name": name, "arguments": {}}}
    return {**turn_of("assistant", ""), "tool_calls": [call]}


def as_turn(message: Message | Mapping[str, Any]) -> Turn:
    """A plain dict without empty keys; arguments of calls as objects, which is what templates expect."""
    if isinstance(message, Message):
        message = message.model_dump()
    turn = {key: value for key, value in message.items() if value is not None}
    if not isinstance(turn.get("role"), str):
        raise DatasetError("A message has no role.", "Use system, user, assistant or tool.")
    turn.pop("train", None)  # decides the loss, and is no template's business
    turn["role"] = str(turn["role"])  # a template gets plain values only
    thoughts = [turn.pop(name) for name in USUAL if name in turn]
    if thoughts and isinstance(thoughts[0], str) and turn["role"] == "assistant":
        turn["reasoning"] = thoughts[0]
    turn.setdefault("content", "")
    if turn.get("tool_calls"):
        turn["tool_calls"] = [_as_call(call) for call in turn["tool_calls"]]
    return turn


def _as_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
        except (ValueError, RecursionError):
            return call
    return call


def calls_as_text(turn: Turn) -> Turn:
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    lines = [json.dumps(_named_first(call.get("function", call)), ensure_ascii=False) for call in calls]
    rest = {key: value for key, value in turn.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(([turn["content"]] if turn["content"] else []) + lines)}


def _named_first(function: Any) -> Any:
    """In the order in which calls are read (studio.datasets.call_format.AS_TEXT)."""
    if not isinstance(function, dict) or not {"name", "arguments"} <= function.keys():
        return function
    return {"name": function["name"], "arguments": function["arguments"], **function}
