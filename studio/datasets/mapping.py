"""Rows to examples: what each format makes of a row, as the JSON of studio.types.Example.

A row that can't be mapped raises RowError with the reason and a fix. Empty texts are fine: they are findings, not problems.
Works on plain dicts, because a file may have a million rows. Knows nothing of files.
"""

from __future__ import annotations

import math
import re
from typing import Any

from studio.datasets.json_records import parse_json
from studio.datasets.records import Row
from studio.datasets.shapes import unpacked

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

SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")

Turn = dict[str, Any]
ExampleJson = dict[str, Any]  # the JSON of studio.types.Example


class RowError(ValueError):
    """Why one row can't be mapped, and what would help."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


# parts of a row


def _text(row: Row, mapping: dict[str, str], role: str) -> str:
    """The text of a required role."""
    column = mapping[role]
    value = row.get(column)
    if type(value) is str:
        return value
    text = _as_text(value, column)
    if text is None:
        raise RowError(f"There is no value in the column {column!r}.", "Fill it in, or leave the row out.")
    return text


def _optional(row: Row, mapping: dict[str, str], role: str) -> str:
    """The text of a role that may be missing; ""."""
    column = mapping.get(role)
    if column is None:
        return ""
    value = row.get(column)
    if type(value) is str:
        return value
    return _as_text(value, column) or ""


def _as_text(value: Any, column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return repr(value)
    if isinstance(value, bytes):
        raise RowError(f"The column {column!r} holds bytes where text is expected.", "Write it as text.")
    if isinstance(value, list):
        if value and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            return "".join(_as_text(part.get("text"), column) or "" for part in value)
        raise RowError(f"The column {column!r} holds a list where text is expected.", "Write text, or choose another column.")
    if isinstance(value, dict):
        raise RowError(f"The column {column!r} holds an object where text is expected.", "Write text, or choose another column.")
    return str(value)  # numbers, dates


def _turns(value: Any, column: str) -> list[Turn]:
    """Messages of a list of turns, whatever its keys and role names are."""
    value = unpacked(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"The column {column!r} holds no list of messages.", 'Write [{"role": "user", "content": "…"}, …].')
    if not value:
        raise RowError(f"The conversation in {column!r} has no message.", "Add messages, or leave the row out.")
    return [_message(turn, number, column) for number, turn in enumerate(value, start=1)]


def _message(turn: Any, number: int, column: str) -> Turn:
    where = f"Message {number} of {column!r}"
    if not isinstance(turn, dict):
        raise RowError(f"{where} is no object.", 'Write each message as {"role": "user", "content": "…"}.')
    given = turn.get("role", turn.get("from"))
    role = None
    if isinstance(given, str):
        role = ROLES.get(given.strip().lower())
    if role is None:
        raise RowError(f"{where} has the unknown role {given!r}."[:200], "Use system, user, assistant or tool.")
    content = _as_text(turn.get("content", turn.get("value")), column)
    calls = turn.get("tool_calls") or turn.get("function_call")
    if role == "call":
        role, calls = "assistant", _parsed_calls(content)
        if calls:
            content = ""
    if content is None and not calls:
        raise RowError(f"{where} has no content.", "Fill it in, or leave the row out.")
    message: Turn = {"role": role, "content": content or ""}
    if calls:
        message["tool_calls"] = [_call(call, where) for call in _as_list(calls)]
    if isinstance(turn.get("name"), str) and turn["name"]:
        message["name"] = turn["name"]
    return message


def _parsed_calls(content: str | None) -> list[Any] | None:
    """Calls in the JSON of a ShareGPT function_call; None where it is no JSON, and then it stays the text it is."""
    try:
        value = parse_json(content or "")
    except (ValueError, RecursionError):
        return None
    calls = _as_list(value)
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


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [value]


def _tools(row: Row, mapping: dict[str, str]) -> list[dict[str, Any]] | None:
    """Tool schemas as in the OpenAI protocol; None where there are none."""
    column = mapping.get("tools")
    value = unpacked(row.get(column)) if column is not None else None
    if value is None or value == "" or value == []:
        return None
    tools = _as_list(value)
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError(f"The tools in {column!r} are no list of objects.", "Write them as JSON, or leave the column out.")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _answer(row: Row, mapping: dict[str, str], role: str) -> list[Turn]:
    """An answer as messages: a text, one message, or several."""
    value = unpacked(row.get(mapping[role]))
    if isinstance(value, (list, dict)) and value:
        return _turns(value, mapping[role])
    return [{"role": "assistant", "content": _text(row, mapping, role)}]


def _question(row: Row, mapping: dict[str, str], role: str = "prompt") -> list[Turn]:
    value = unpacked(row.get(mapping[role]))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _turns(value, mapping[role])
    return [{"role": "user", "content": _text(row, mapping, role)}]


def _with_system(row: Row, mapping: dict[str, str], messages: list[Turn]) -> list[Turn]:
    system = _optional(row, mapping, "system")
    if system and not (messages and messages[0]["role"] == "system"):
        return [{"role": "system", "content": system}, *messages]
    return messages


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


# formats


def _exchange(row: Row, mapping: dict[str, str], user: str, answer: str) -> list[ExampleJson]:
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    if "system" in mapping:
        turns = _with_system(row, mapping, turns)
    return [{"messages": turns}]


def alpaca(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    user = _joined(_text(row, mapping, "instruction"), _optional(row, mapping, "input"))
    made = _exchange(row, mapping, user, _text(row, mapping, "output"))
    history = unpacked(row.get(mapping["history"])) if "history" in mapping else None
    if history:
        turns = made[0]["messages"]
        place = len(turns) - 2
        made[0]["messages"] = [*turns[:place], *_history(history, mapping["history"]), *turns[place:]]
    return made


def _history(history: Any, column: str) -> list[Turn]:
    """Earlier exchanges: [[question, answer], …]."""
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError(f"The column {column!r} holds no pairs.", "Write [[question, answer], …], or leave it out.")
    return [
        {"role": role, "content": _as_text(text, column) or ""}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def question_answer(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    user = _joined(_optional(row, mapping, "context"), _text(row, mapping, "question"))
    return _exchange(row, mapping, user, _text(row, mapping, "answer"))


def instances(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    instruction, instances = _text(row, mapping, "instruction"), unpacked(row.get(mapping["instances"]))
    if not isinstance(instances, list) or not instances or not all(isinstance(instance, dict) for instance in instances):
        raise RowError(f"The column {mapping['instances']!r} holds no list of instances.", 'Write [{"input": "…", "output": "…"}].')
    names = {"output": "output", "input": "input"}
    return [
        made
        for instance in instances
        for made in _exchange(instance, {}, _joined(instruction, _optional(instance, names, "input")), _text(instance, names, "output"))
    ]


def _conversation(row: Row, mapping: dict[str, str], role: str) -> list[ExampleJson]:
    value = row.get(mapping[role])
    if value is None:
        raise RowError(f"There is no value in the column {mapping[role]!r}.", "Fill it in, or leave the row out.")
    return [_with_tools(row, mapping, {"messages": _with_system(row, mapping, _turns(value, mapping[role]))})]


def messages(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return _conversation(row, mapping, "messages")


def conversations(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return _conversation(row, mapping, "conversations")


def _with_tools(row: Row, mapping: dict[str, str], example: dict[str, Any]) -> dict[str, Any]:
    tools = _tools(row, mapping)
    if tools:
        return {**example, "tools": tools}
    return example


def prompt_completion(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    # the completion alone is learned, as TRL documents for such rows
    question = [{**turn, "train": False} if turn["role"] == "assistant" else turn for turn in _question(row, mapping)]
    messages = [*_with_system(row, mapping, question), *_answer(row, mapping, "completion")]
    return [_with_tools(row, mapping, {"messages": messages})]


def continuation(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return [{"prompt": _text(row, mapping, "prompt"), "completion": _text(row, mapping, "completion")}]


def document(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return [{"text": _text(row, mapping, "text")}]


def prompts(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    return [{"messages": [{"role": "user", "content": _text(row, mapping, "prompt")}]}]


def mt_bench(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    column = mapping["turns"]
    turns = unpacked(row.get(column))
    if not isinstance(turns, list) or not turns:
        raise RowError(f"The column {column!r} holds no list of questions.", 'Write ["first question", "second question"].')
    return [{"messages": [{"role": "user", "content": _as_text(turn, column) or ""} for turn in turns]}]


def preference(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    chosen, rejected = _answer(row, mapping, "chosen"), _answer(row, mapping, "rejected")
    prompt: list[Turn] = []
    if "conversations" in mapping:
        prompt = _turns(row.get(mapping["conversations"]), mapping["conversations"])
    elif "prompt" in mapping:
        prompt = _question(row, mapping)
        if len(prompt) == 1 and "input" in mapping:
            prompt = [{**prompt[0], "content": _joined(prompt[0]["content"], _optional(row, mapping, "input"))}]
    # answers may repeat the conversation that leads to them
    shared: list[Turn] = []
    if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        shared = prompt
    if not prompt:
        chosen, rejected = _spoken(chosen), _spoken(rejected)
        prompt = shared = _shared_turns(chosen, rejected)
    chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
    if not (chosen and rejected):
        raise RowError("An answer holds nothing but the prompt.", "Add the answer, or leave the row out.")
    if not prompt:
        raise RowError("There is no prompt that both answers share.", "Add a column with the prompt, or leave the row out.")
    example = {"prompt": _with_system(row, mapping, prompt), "chosen": chosen, "rejected": rejected}
    return [_with_tools(row, mapping, example)]


def _spoken(answer: list[Turn]) -> list[Turn]:
    """The turns of a conversation that is written as one text, as Anthropic's hh-rlhf has them; else what it was."""
    if len(answer) != 1:
        return answer
    before, *parts = SPEAKER.split(answer[0]["content"])
    turns = [{"role": ROLES[name.lower()], "content": text.strip()} for name, text in zip(parts[::2], parts[1::2], strict=True)]
    if len(turns) > 1 and not before.strip():
        return turns
    return answer


def _shared_turns(chosen: list[Turn], rejected: list[Turn]) -> list[Turn]:
    """Turns with which both begin; each keeps at least its last one."""
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    return chosen[:count]


def kto(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    prompt, completion = _question(row, mapping), _answer(row, mapping, "completion")
    return [{"prompt": _with_system(row, mapping, prompt), "completion": completion, "label": _label(row, mapping)}]


def sharegpt_kto(row: Row, mapping: dict[str, str]) -> list[ExampleJson]:
    turns = _with_system(row, mapping, _turns(row.get(mapping["conversations"]), mapping["conversations"]))
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowError("The conversation does not end with an answer of the assistant.", "Add the answer that the label is about.")
    return [_with_tools(row, mapping, {"prompt": turns[:-1], "completion": turns[-1:], "label": _label(row, mapping)})]


def _label(row: Row, mapping: dict[str, str]) -> bool:
    value = row.get(mapping["label"])
    word = value
    if isinstance(value, str):
        word = value.strip().lower()
    if word in (True, 1, "true", "1", "yes", "good"):
        return True
    if word in (False, 0, "false", "0", "no", "bad"):
        return False
    raise RowError(f"The label {str(value)[:50]!r} is neither true nor false.", "Write true or false.")
