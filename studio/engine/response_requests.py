"""/v1/responses as a request of chat: the same conversation, tools and form under the names of chat completions.

Nothing is kept between requests, so fields that point to an earlier one are refused by name. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from studio.engine import body_fields
from studio.engine.protocol import bad_request

Item = Mapping[str, Any]

# with any other value the answer would be another one, or could be asked for later
REFUSED: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (), "conversation": (), "background": (), "store": (), "prompt": (), "truncation": ("disabled",), "n": (1,),
    "context_management": (), "messages": (), "response_format": (),
}  # fmt: skip
# read here; all others mean what they mean in chat
FIELDS = frozenset({
    "input", "instructions", "text", "max_output_tokens", "tools", "tool_choice", "include", "top_logprobs", "max_tool_calls",
    "stream_options", *REFUSED,
})  # fmt: skip
LOGPROBS = "message.output_text.logprobs"  # of `include`; what else it may name belongs to tools that are not here
TEXTS = ("input_text", "output_text", "text", "refusal")  # parts of a message that are text
CALL = "Give call_id, name and arguments."


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of /v1/chat/completions that asks the same. Raises EngineError 400 naming the field."""
    for name, harmless in REFUSED.items():
        if body.get(name) not in (*body_fields.NOTHING, *harmless):
            fix = "Send the whole conversation as input: nothing is kept between requests."
            raise bad_request(f"{name} is not supported here.", fix, param=name, code="unsupported_parameter")
    limit = body.get("max_output_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise bad_request("max_output_tokens is no number of tokens.", "Give 1 or more.", param="max_output_tokens")
    if not isinstance(body.get("metadata") or {}, Mapping):
        raise bad_request("metadata is no object.", "Correct that field.", param="metadata")
    chat = {name: value for name, value in body.items() if name not in FIELDS}
    chat["messages"] = [*_instructions(body), *_messages(body.get("input"))]
    chat["max_completion_tokens"] = limit
    chat["response_format"] = _form(body.get("text"))
    if tools := body.get("tools"):
        chat["tools"] = [_tool(number, tool) for number, tool in enumerate(_listed(tools, "tools"))]
    chat["tool_choice"] = _choice(body.get("tool_choice"))
    if LOGPROBS in _listed(body.get("include") or [], "include") or body.get("top_logprobs"):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs")}
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return {name: value for name, value in chat.items() if value is not None}


def _instructions(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    given = body.get("instructions")
    if given is None:
        return []
    if not isinstance(given, str):
        raise bad_request("instructions is no text.", "Correct that field.", param="instructions")
    return [{"role": "system", "content": given}]


def _messages(given: Any) -> list[dict[str, Any]]:
    """A text, or items; calls of one turn stand together in a message of the assistant."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    found: list[dict[str, Any]] = []
    for number, item in enumerate(_listed(given, "input")):
        place = f"input.{number}"
        if not isinstance(item, Mapping):
            raise bad_request(f"{place} is no item.", "Give items in braces.", param=place)
        read = ITEMS.get(item.get("type", "message"))
        if read is None:
            said = f"{place} is of type {str(item.get('type'))[:60]!r}, which can't be read here."
            raise bad_request(said, f"Give {', '.join(ITEMS)}.", param=place)
        message = read(item, place)
        if "tool_calls" in message and found and found[-1]["role"] == "assistant":
            found[-1]["tool_calls"] = [*found[-1].get("tool_calls", []), *message["tool_calls"]]
        else:
            found.append(message)
    return found


def _message(item: Item, place: str) -> dict[str, Any]:
    return {"role": item.get("role"), "content": _text(item.get("content"), f"{place}.content")}


def _call(item: Item, place: str) -> dict[str, Any]:
    name, arguments, call = (_string(item, key, place) for key in ("name", "arguments", "call_id"))
    made = {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def _result(item: Item, place: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": _string(item, "call_id", place), "content": _text(item.get("output"), f"{place}.output")}


ITEMS: dict[str, Callable[[Item, str], dict[str, Any]]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
}


def _string(item: Item, key: str, place: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise bad_request(f"{place}.{key} is no text.", CALL, param=f"{place}.{key}")
    return value


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    parts = _listed(content, place)
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping) or part.get("type") not in TEXTS:
            raise bad_request(f"{place}.{number} is no text.", "Only text can be read here.", param=f"{place}.{number}")
    return "".join(str(part.get("text", part.get("refusal", ""))) for part in parts)


def _listed(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise bad_request(f"{place} is no list.", "Correct that field.", param=place)
    return value


def _form(text: Any) -> dict[str, Any] | None:
    """`text.format` as response_format."""
    if text is None:
        return None
    if not isinstance(text, Mapping):
        raise bad_request("text is no object.", "Correct that field.", param="text")
    if text.get("verbosity") not in (None, "medium"):
        raise bad_request("text.verbosity is not supported here.", "Leave it out.", param="text.verbosity", code="unsupported_parameter")
    form = text.get("format")
    if form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") not in ("text", "json_object", "json_schema"):
        raise bad_request("text.format.type is unknown.", "It must be text, json_object or json_schema.", param="text.format")
    if form["type"] != "json_schema":
        return {"type": form["type"]}
    if not isinstance(form.get("schema"), Mapping):
        raise bad_request("text.format.schema is no JSON schema.", "It must be an object in braces.", param="text.format")
    return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}


def _tool(number: int, tool: Any) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        said = f"tools.{number} is of type {str(kind)[:60]!r}: there are no tools here but functions of your own."
        raise bad_request(said, "Leave it out.", param=f"tools.{number}", code="unsupported_parameter")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _choice(choice: Any) -> Any:
    """A function is named flat here, and in an object of its own in chat."""
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice is None or isinstance(choice, str):
        return choice
    raise bad_request("tool_choice is unknown.", "It must be none, auto, required or a function.", param="tool_choice")
