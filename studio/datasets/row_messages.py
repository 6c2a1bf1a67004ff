"""Messages of a row: a list of turns in any tool's keys and role names, as the JSON of studio.types.Message. Knows no formats.

Raises RowError with the number of the message, what is wrong with it, and a fix.
"""

from __future__ import annotations

import math
from typing import Any

from studio.datasets.json_records import parse_json
from studio.datasets.reasoning import split_reasoning
from studio.datasets.records import Row
from studio.datasets.row_errors import RowError
from studio.datasets.shapes import unpacked
from studio.datasets.telling import MARKS, MASKED, REFUSED_KEYS, THOUGHTS, is_blank

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
THOUGHT_PARTS = frozenset({"reasoning", "thinking", "think", "thought", "reasoning_text", "summary_text", "reasoning.text"})
LEARNED = frozenset({"1", "1.0", "true", "yes"})
NOT_LEARNED = frozenset({"0", "0.0", "false", "no"})
MAX_SHOWN = 60

Turn = dict[str, Any]


def as_text(value: Any, where: str) -> str | None:
    """The text of a cell; None where it is empty."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return repr(value)
    if isinstance(value, bytes):
        raise RowError(f"The column {where!r} holds bytes where text is expected.", "Write it as text.")
    if isinstance(value, list):
        if value and all(isinstance(part, dict) and part.get("type") in TEXT_PARTS for part in value):
            text, _ = content_of(value, f"The column {where!r}")
            return text
        raise RowError(f"The column {where!r} holds a list where text is expected.", "Write text, or choose another column.")
    if isinstance(value, dict):
        raise RowError(f"The column {where!r} holds an object where text is expected.", "Write text, or choose another column.")
    return str(value)  # numbers, dates


def turns_of(value: Any, column: str) -> list[Turn]:
    """Messages of a list of turns, whatever its keys and role names are."""
    value = unpacked(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"The column {column!r} holds no list of messages.", 'Write [{"role": "user", "content": "…"}, …].')
    if not value:
        raise RowError(f"The conversation in {column!r} has no message.", "Add messages, or leave the row out.")
    return [_message(turn, f"Message {number} of {column!r}") for number, turn in enumerate(value, start=1)]


def _message(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise RowError(f"{where} is no object.", 'Write each message as {"role": "user", "content": "…"}.')
    given = turn.get("role", turn.get("from"))
    role = ROLES.get(given.strip().lower()) if isinstance(given, str) else None
    if role is None:
        raise RowError(f"{where} has the unknown role {given!r}."[:200], "Use system, user, assistant or tool.")
    _check_keys(turn, where)
    content, thought = content_of(turn.get("content", turn.get("value")), where)
    calls = _given_calls(turn)
    if role == "call":
        role, calls = "assistant", _parsed_calls(content)
        if calls:
            content = ""
    thought = _reasoning(turn, thought, where)
    if role == "assistant" and content is not None:
        thought, content = _with_inline(thought, content, where)
    if content is None and not calls and thought is None:
        raise RowError(f"{where} has no content.", "Fill it in, or leave the row out.")
    message: Turn = {"role": role, "content": content or ""}
    if calls:
        message["tool_calls"] = [_call(call, where) for call in as_list(calls)]
    if isinstance(turn.get("name"), str) and turn["name"]:
        message["name"] = turn["name"]
    train = _mark(turn, where)
    if train is not None:
        message["train"] = train
    if thought is not None:
        _check_reasoning(message, thought, where)
        message["reasoning"] = thought
    return message


def _check_keys(turn: Turn, where: str) -> None:
    """Refuse what would change the meaning of a message and can't be honoured."""
    for key in sorted(turn.keys() & REFUSED_KEYS.keys()):
        if not is_blank(turn[key]):
            problem = f"{where} has the key {key!r}, which {REFUSED_KEYS[key]}; that can't be learned."
            raise RowError(problem, "Leave the row or the key out.")


# content


def content_of(value: Any, where: str) -> tuple[str | None, str | None]:
    """The text of a message's content and what was thought before it; content may be a text, a part, or a list of parts."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return as_text(value, where), None
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(value, start=1):
        if part is None:
            continue
        kind, text = _part(part, f"{where}, part {number},")
        (thoughts if kind in THOUGHT_PARTS else texts).append(text)
    return "".join(texts) if texts else None, "\n".join(thoughts) if thoughts else None


def _part(part: Any, where: str) -> tuple[str, str]:
    """The type of a part of a content, and its text."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        raise RowError(f"{where} is neither text nor an object.", 'Write it as {"type": "text", "text": "…"}.')
    kind = part.get("type")
    if kind is None and isinstance(part.get("text"), str):
        kind = "text"
    if kind not in TEXT_PARTS and kind not in THOUGHT_PARTS:
        named = f"is of the type {str(kind)[:MAX_SHOWN]!r}" if kind is not None else f"has no type ({', '.join(list(part)[:5])})"
        raise RowError(f"{where} {named}; only text can be learned.", "Describe it in words, or leave the row out.")
    for key, held in part.items():  # a part in a table has the keys of all parts
        if key in REFUSED_KEYS and not is_blank(held):
            raise RowError(f"{where} holds {key!r}; only text can be learned.", "Describe it in words, or leave the row out.")
    text = next((part[key] for key in ("text", "thinking", "reasoning", "content", "summary") if part.get(key) is not None), "")
    if isinstance(text, list):
        return str(kind), "".join(_part(inner, where)[1] for inner in text)
    if not isinstance(text, str):
        raise RowError(f"{where} holds no text.", 'Write it as {"type": "text", "text": "…"}.')
    return str(kind), text


# reasoning


def _reasoning(turn: Turn, found: str | None, where: str) -> str | None:
    """What was thought, from the parts of the content and the keys that hold reasoning; they must agree."""
    told = {} if found is None else {"content": found}
    for key in sorted(turn.keys() & THOUGHTS):
        if not is_blank(turn[key]):
            told[key] = _thought(turn[key], f"{where}, {key},")
    texts = {text.strip() for text in told.values()}
    if len(texts) > 1:
        raise RowError(f"{where} has different reasoning in {' and '.join(told)}.", "Keep one of them.")
    return next(iter(told.values()), None)


def _thought(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    text, thought = content_of(value, where)
    return "\n".join(each for each in (thought, text) if each is not None)


def _with_inline(thought: str | None, content: str, where: str) -> tuple[str | None, str]:
    """Reasoning that is written inside the answer, taken out of it."""
    inline, answer = split_reasoning(content)
    if inline is None:
        if content.lstrip().startswith("<think>"):
            raise RowError(f"{where} has reasoning without an end and an answer.", "Close it with </think> and add the answer.")
        return thought, content
    if thought is not None and inline and inline.strip() != thought.strip():
        raise RowError(f"{where} has different reasoning in a field and inside <think>.", "Keep one of them.")
    return thought if thought is not None else inline, answer


def _check_reasoning(message: Turn, thought: str, where: str) -> None:
    if message["role"] != "assistant":
        raise RowError(f"{where} has reasoning, but is no answer of the assistant.", "Move it to the answer, or leave it out.")
    if not message["content"].strip() and not message.get("tool_calls") and thought.strip():
        raise RowError(f"{where} has reasoning without an answer.", "Add the answer, or leave the row out.")


# marks


def _mark(turn: Turn, where: str) -> bool | None:
    """Whether a message is to be learned, where it says so; all of its marks must agree."""
    marks: dict[str, bool] = {}
    for key in sorted(turn.keys() & (MARKS | MASKED)):
        value = turn[key]
        if is_blank(value):
            continue
        word = str(value).strip().lower()
        if isinstance(value, (list, dict)) or word not in LEARNED | NOT_LEARNED:
            fix = "Write 1 (or true) for what is learned and 0 (or false) for what is not."
            raise RowError(f"{where} has the mark {key}: {word[:MAX_SHOWN]}, which is neither 0 nor 1.", fix)
        marks[key] = (word in LEARNED) != (key in MASKED)
    if len(set(marks.values())) > 1:
        told = " and ".join(f"{key}: {str(turn[key]).lower()}" for key in marks)
        raise RowError(f"{where} is marked both to be learned and not to be ({told}).", "Keep one mark.")
    return next(iter(marks.values()), None)


# tools


def _given_calls(turn: Turn) -> Any:
    """The calls of a message, as a list, an object or JSON; None where there are none."""
    calls = (unpacked(turn.get(key)) for key in ("tool_calls", "function_call"))
    return next((each for each in calls if not is_blank(each)), None)


def _parsed_calls(content: str | None) -> list[Any] | None:
    """Calls in the JSON of a ShareGPT function_call; None where it is no JSON, and then it stays the text it is."""
    try:
        value = parse_json(content or "")
    except (ValueError, RecursionError):
        return None
    calls = as_list(value)
    if calls and all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return calls
    return None


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call as in the OpenAI protocol, its arguments an object wherever they can be read as one."""
    function = call
    if isinstance(call, dict):
        function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} has a tool call without a name.", 'Write {"function": {"name": "…", "arguments": {…}}}.')
    arguments = unpacked(function.get("arguments"))
    if arguments is None:
        arguments = {}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value]


def tool_schemas(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Tool schemas as in the OpenAI protocol; None where there are none."""
    value = unpacked(value)
    if is_blank(value):
        return None
    tools = [unpacked(tool) for tool in as_list(value)]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError(f"The tools in {column!r} are no list of objects.", "Write them as JSON, or leave the column out.")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def tools_of(row: Row, mapping: dict[str, str]) -> list[dict[str, Any]] | None:
    column = mapping.get("tools")
    if column is None:
        return None
    return tool_schemas(row.get(column), column)
