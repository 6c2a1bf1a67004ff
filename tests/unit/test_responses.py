"""/v1/responses as chat and back: what is asked, the answer whole and in events, calls of functions, refusals by name."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from openai.types.responses import Response, ResponseStreamEvent

from studio.api.openai_shapes import ModelResponse
from studio.engine.response_answers import ResponseInMaking
from studio.engine.response_requests import as_chat
from studio.errors import EngineError

KINDS = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])}
TOOL = {"type": "function", "name": "book", "description": "a seat", "parameters": {"type": "object"}, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "book", "arguments": '{"seat": 7}'}}
ASKED: dict[str, Any] = {"model": "m", "input": "Hi", "tools": [TOOL]}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_a_conversation_with_calls_is_what_chat_reads() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Book "}, {"type": "input_text", "text": "7."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Yes."}],
            "id": "msg_1",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "call_1", "name": "book", "arguments": '{"seat": 7}'},
        {"type": "function_call", "call_id": "call_2", "name": "book", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    ]
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    asked = {
        "model": "m", "instructions": "Short.", "input": items, "tools": [TOOL], "tool_choice": {"type": "function", "name": "book"},
        "text": {"format": schema}, "max_output_tokens": 9, "temperature": 0, "store": False, "stream": True, "min_p": 0.1, "colour": 1,
        "include": ["message.output_text.logprobs"], "top_logprobs": 2, "metadata": {"a": "b"},
    }  # fmt: skip
    chat = as_chat(asked)
    assert [(message["role"], message["content"]) for message in chat["messages"]] == [
        ("system", "Short."), ("developer", "Be kind."), ("user", "Book 7."), ("assistant", "Yes."), ("tool", "done"),
    ]  # fmt: skip
    assert [call["id"] for call in chat["messages"][3]["tool_calls"]] == ["call_1", "call_2"]
    assert chat["tools"] == [{"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "book"}}
    assert chat["response_format"]["json_schema"] == {"name": "x", "schema": {"type": "object"}, "strict": True}
    assert (chat["max_completion_tokens"], chat["logprobs"], chat["top_logprobs"], chat["min_p"], chat["colour"]) == (9, True, 2, 0.1, 1)
    assert chat["stream_options"] == {"include_usage": True} and "input" not in chat and "store" not in chat


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": None}, "input"),
        ({"input": [3]}, "input.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"instructions": 3}, "instructions"),
        ({"metadata": [1]}, "metadata"),
    ],
)
def test_what_is_not_kept_or_not_here_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineError) as refused:
        as_chat({"model": "m", "input": "Hi", **fields})
    assert (refused.value.status, refused.value.details["param"]) == (400, param)


def test_a_whole_answer_has_the_clients_types() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    made = ResponseInMaking(ASKED).whole(
        {"choices": [{"message": message, "finish_reason": "tool_calls", "studio": {"reused_tokens": 2}}], "usage": USAGE}
    )
    ModelResponse.model_validate(made)
    read = Response.model_validate(made)
    (call,) = read.output
    assert call.type == "function_call" and (call.call_id, call.name, call.arguments) == ("call_1", "book", '{"seat": 7}')
    assert read.usage and (read.usage.total_tokens, read.usage.input_tokens_details.cached_tokens) == (8, 2)
    cut = ResponseInMaking(ASKED).whole({"choices": [{"message": {"content": "So"}, "finish_reason": "length"}], "usage": USAGE})
    assert (cut["status"], cut["incomplete_details"], cut["output"][0]["status"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
        "incomplete",
    )
    assert Response.model_validate(cut).output_text == "So"


def streamed(*deltas: dict[str, Any], reason: str = "stop") -> list[dict[str, Any]]:
    answering = ResponseInMaking(ASKED)
    events = list(answering.begin())
    for delta in deltas:
        events += answering.take({"choices": [{"delta": delta, "finish_reason": None}]})
    events += answering.take({"choices": [{"delta": {}, "finish_reason": reason, "studio": {}}]})
    events += answering.take({"choices": [], "usage": USAGE})
    events += answering.end()
    for number, event in enumerate(events):
        KINDS[event["type"]].model_validate(event)
        assert event["sequence_number"] == number
    return events


def test_a_text_comes_in_openais_order() -> None:
    events = streamed({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"})
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[6]["text"] == events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
    assert events[3]["part"]["text"] == "" and events[2]["item"]["content"] == []  # as it was then
    assert events[-1]["response"]["usage"]["output_tokens"] == 3


def test_calls_come_as_items_of_their_own_after_the_text() -> None:
    def part(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
        head = {"id": f"call_{index}", "type": "function"} if name else {}
        return {"tool_calls": [{"index": index, **head, "function": {"name": name, "arguments": arguments}}]}

    events = streamed(
        {"content": "Yes."}, part(0, "", "book"), part(0, '{"seat"'), part(0, ": 7}"), part(1, "{}", "book"), reason="tool_calls"
    )
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[8:] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done", "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    output = events[-1]["response"]["output"]
    assert [(item["type"], item.get("arguments"), item.get("call_id")) for item in output] == [
        ("message", None, None), ("function_call", '{"seat": 7}', "call_0"), ("function_call", "{}", "call_1"),
    ]  # fmt: skip


def test_an_answer_that_fails_or_says_nothing_ends_properly() -> None:
    answering = ResponseInMaking(ASKED)
    list(answering.begin())
    (failed,) = answering.take({"error": {"message": "No memory.", "code": "out_of_memory"}})
    assert (failed["type"], failed["response"]["error"]) == ("response.failed", {"code": "out_of_memory", "message": "No memory."})
    assert streamed(reason="length")[-1]["type"] == "response.incomplete"
    assert streamed()[-1]["response"]["output"][0]["content"][0]["text"] == ""
