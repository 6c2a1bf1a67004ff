"""Reading OpenAI request bodies, and contestants as plain values."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from studio.engine import body_fields, server
from studio.engine.bodies import CHAT_FIELDS, COMPLETION_FIELDS, parse_chat, parse_completion
from studio.engine.protocol import AdapterRef, Contestant, Ending, Grammar, ModelFolder, error_body
from studio.errors import EngineError

STUDIO = {"base": {"name": "b", "path": "/models/b"}, "adapter": None}
CHAT: dict[str, Any] = {"studio": STUDIO, "messages": [{"role": "user", "content": "hi"}]}


def test_defaults_are_openais() -> None:
    chat = parse_chat(CHAT)
    assert (chat.params.temperature, chat.params.top_p, chat.n, chat.is_streaming, chat.top_logprobs) == (1.0, 1.0, 1, False, None)
    assert chat.params.max_new_tokens > 10_000  # the context is the limit
    assert parse_completion({"studio": STUDIO}).params.max_new_tokens == 16
    assert parse_completion({"studio": STUDIO}).prompts == ("",)


def test_fields_of_both_generations_are_read() -> None:
    body = {"max_completion_tokens": 9, "temperature": 0, "stop": "END", "seed": 3, "logprobs": True, "top_logprobs": 2, "stream": True}
    chat = parse_chat({**CHAT, **body, "stream_options": {"include_usage": True}, "user": "somebody", "frequency_penalty": 0})
    assert (chat.params.max_new_tokens, chat.params.temperature, chat.params.stop, chat.params.seed) == (9, 0, ("END",), 3)
    assert (chat.top_logprobs, chat.is_streaming, chat.include_usage) == (2, True, True)


def test_content_parts_are_joined_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [{"role": "developer", "content": parts}, {"role": "assistant", "content": None, "tool_calls": calls}]
    system, assistant = parse_chat({"studio": STUDIO, "messages": messages}).messages
    assert (system.role, system.content) == ("system", "ab")
    assert (assistant.content, assistant.tool_calls) == ("", calls)


def test_the_model_leaves_after_ten_minutes_or_as_many_as_are_named() -> None:
    assert server.parse_arguments([]).idle_s == 600
    assert server.parse_arguments(["--idle-minutes", "2.5"]).idle_s == 150


@pytest.mark.parametrize(
    ("prompt", "expected"), [("x", ("x",)), (["x", ""], ("x", "")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))]
)
def test_prompts_are_texts_or_token_ids(prompt: Any, expected: Any) -> None:
    assert parse_completion({"studio": STUDIO, "prompt": prompt}).prompts == expected


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 65}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"speculation": "prompt_lookup", "temperature": 1}, "speculation"),
        ({"speculation": "assistant", "temperature": 0}, "assistant_model"),
        ({"grammar": 'root ::= "a"', "regex": "a"}, "grammar"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a-z]"}, "grammar"),
        ({"studio": None}, "studio"),
        ({"studio": {"base": "x"}}, "studio"),
    ],
)
def test_what_can_not_be_done_is_refused_by_field(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineError) as refused:
        parse_chat({**CHAT, **changes})
    body = error_body(refused.value)["error"]
    assert (refused.value.status, body["param"], body["type"]) == (400, param, "invalid_request_error")
    assert body["message"] and body["code"]


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHANGING = sorted(body_fields.REFUSED)


@pytest.mark.parametrize("name", CHANGING)
def test_a_field_that_changes_the_answer_is_refused_by_name_unless_it_changes_nothing(name: str) -> None:
    for harmless in (None, *body_fields.REFUSED[name]):
        parse_chat({**CHAT, name: harmless})
    for harmful in ("something", *[False] * any(one is True for one in body_fields.REFUSED[name])):
        with pytest.raises(EngineError) as refused:
            parse_chat({**CHAT, name: harmful})
        assert (refused.value.status, error_body(refused.value)["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    ("field", "value", "form"),
    [
        ("guided_json", {"type": "integer"}, Grammar("json_schema", '{"type": "integer"}')),
        ("guided_json", '{"type": "integer"}', Grammar("json_schema", '{"type": "integer"}')),
        ("json_schema", {"type": "integer"}, Grammar("json_schema", '{"type": "integer"}')),
        ("guided_choice", ["a.b", "c", "c"], Grammar("regex", r"a\.b|c")),
        ("guided_regex", "[0-9]+", Grammar("regex", "[0-9]+")),
        ("guided_grammar", 'root ::= "a"', Grammar("gbnf", 'root ::= "a"')),
        ("structured_outputs", {"choice": ["north", "south"]}, Grammar("regex", "north|south")),
        ("structured_outputs", {"json": {"type": "null"}, "regex": None}, Grammar("json_schema", '{"type": "null"}')),
        ("structured_outputs", {"json_object": True}, Grammar("json_schema", '{"type": "object"}')),
        ("structured_outputs", {}, None),
        ("guided_json_object", False, None),
    ],
)
def test_other_servers_names_of_a_form_are_kept_to(field: str, value: Any, form: Grammar | None) -> None:
    assert parse_chat({**CHAT, field: value}).grammar == form


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_json": "no schema"}, "guided_json"),
        ({"guided_choice": []}, None),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": "x"}, "structured_outputs"),
        ({"guided_regex": "a", "regex": "b"}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"min_tokens": 3, "guided_regex": "a"}, "min_tokens"),
        ({"ignore_eos": True, "grammar": 'root ::= "a"'}, "ignore_eos"),
        ({"min_p": 2}, "min_p"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": [TOOL]}, "tool_choice"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
        ({"speculation": "prompt_lookup", "temperature": 0, "min_tokens": 2}, "speculation"),
    ],
)
def test_a_form_that_can_not_be_is_refused_by_name(body: dict[str, Any], param: str | None) -> None:
    if param is None:
        assert parse_chat({**CHAT, **body}).grammar is None
        return
    with pytest.raises(EngineError) as refused:
        parse_chat({**CHAT, **body})
    assert (refused.value.status, error_body(refused.value)["error"]["param"]) == (400, param)


def test_ends_limits_and_names_of_other_servers() -> None:
    asked = parse_chat(
        {**CHAT, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [7], "repeat_penalty": 1.3, "n_predict": 9, "min_p": 0.2}
    )
    assert asked.ending == Ending(frozenset({7}), 2, True)
    assert (asked.params.repetition_penalty, asked.params.max_new_tokens, asked.params.min_p) == (1.3, 9, 0.2)
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        assert not parse_chat({**CHAT, name: -1}).has_limit
    assert parse_chat({**CHAT, "n_predict": 9, "max_tokens": 9}).params.max_new_tokens == 9
    with pytest.raises(EngineError, match="n_predict and max_tokens are two names of one field"):
        parse_chat({**CHAT, "n_predict": 9, "max_tokens": 12})


def test_an_answer_that_goes_on_opens_no_turn_and_any_other_answer_does() -> None:
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]
    going_on = CHAT | {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}
    assert parse_chat(going_on).goes_on and parse_chat(going_on | {"add_generation_prompt": None}).goes_on
    for body in (going_on | {"add_generation_prompt": True}, CHAT | {"messages": begun, "add_generation_prompt": False}):
        with pytest.raises(EngineError) as caught:
            parse_chat(body)
        assert error_body(caught.value)["error"]["param"] == "add_generation_prompt"


def test_tools_that_are_not_to_be_called_are_not_shown() -> None:
    assert parse_chat({**CHAT, "tools": [TOOL], "tool_choice": "none"}).tools is None
    may, must = parse_chat({**CHAT, "tools": [TOOL]}).tools, parse_chat({**CHAT, "tools": [TOOL], "tool_choice": "required"}).tools
    assert may and must and (may.definitions, may.is_forced, must.is_forced) == ((TOOL,), False, True)
    assert parse_chat({**CHAT, "tools": [TOOL], "tool_choice": "auto"}).tools == may


@pytest.mark.parametrize(
    "field", [{"regex": "a"}, {"response_format": {"type": "json_object"}}, {"speculation": "prompt_lookup"}, {"min_tokens": 3}]
)
def test_what_can_not_be_kept_to_beside_tools_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(EngineError) as caught:
        parse_chat({**CHAT, **field, "tools": [TOOL], "temperature": 0})
    assert error_body(caught.value)["error"]["param"] == next(iter(field))
    assert parse_chat({**CHAT, **field, "tools": [TOOL], "temperature": 0, "tool_choice": "none"}).tools is None


def test_what_nothing_reads_is_named() -> None:
    body = {
        **CHAT,
        "user": "u",
        "metadata": {},
        "temperature": 1,
        "logit_bias": {},
        "guided_regex": "a",
        "n_predict": 3,
        "colour": 1,
        "b ü\n": 2,
    }
    names = body_fields.ignored(body, CHAT_FIELDS)
    assert names == ["b ü\n", "colour"] and body_fields.header(names) == "b???,colour"
    assert body_fields.ignored({"prompt": "", "messages": []}, COMPLETION_FIELDS) == ["messages"]
    many = body_fields.header([f"field{number}" * 20 for number in range(100)])
    assert many.endswith(",60-more") and len(many) < 3000


def test_too_many_answers_are_refused() -> None:
    with pytest.raises(EngineError, match="64"):
        parse_completion({"studio": STUDIO, "prompt": ["x"] * 33, "n": 2})


def test_forms_of_an_answer() -> None:
    schema = {"type": "object", "properties": {}}

    def form(**body: Any) -> Grammar | None:
        return parse_chat({**CHAT, **body}).grammar

    assert form() is None and form(response_format={"type": "text"}) is None
    assert form(grammar='root ::= "a"') == Grammar("gbnf", 'root ::= "a"')
    for value in ({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, {"type": "json_object", "schema": schema}):
        found = form(response_format=value)
        assert found is not None and found.kind == "json_schema" and json.loads(found.source) == schema


@pytest.mark.parametrize(
    "contestant",
    [
        Contestant("base", ModelFolder("b", Path("/b"))),
        Contestant("b:a", ModelFolder("b", Path("/b")), AdapterRef("a", Path("/a"), "00ff"), chat_template="{{ x }}"),
        Contestant("http://h/v1#m", url="http://h/v1", model="m"),
    ],
)
def test_a_contestant_survives_as_json(contestant: Contestant) -> None:
    assert Contestant.from_json(json.loads(json.dumps(contestant.as_json()))) == contestant


def test_only_our_own_engine_is_told_folders() -> None:
    assert Contestant("u", ModelFolder("b", Path("/b")), url="http://h/v1", model="m").studio_field() is None


def test_a_first_token_does_not_wait_for_an_acknowledgement() -> None:
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; what is accepted has the listener's
    with server.listen(0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_who_comes_before_the_server_waits_and_is_not_refused() -> None:
    # red when the address is printed before anybody listens there
    with server.listen(0) as listener, socket.create_connection(listener.getsockname(), timeout=60) as early:
        assert early.getpeername() == listener.getsockname()


def test_an_answer_ends_with_its_next_event_or_with_its_reader() -> None:
    # red when a reader who goes away leaves the engine writing for nobody, or when one who stays is sent away
    async def first(of: str) -> tuple[str, bool]:
        disconnected: asyncio.Task[None] = asyncio.ensure_future(asyncio.sleep({"event": 60, "reader": 0}[of]))
        event: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if of == "event":
            event.set_result("a word")
        try:
            return await server._unless(disconnected, event), event.cancelled()  # type: ignore[return-value]
        except EngineError as exc:
            await asyncio.sleep(0)
            return f"{exc.status} {exc.code}", event.cancelled()
        finally:
            disconnected.cancel()

    assert asyncio.run(first("event")) == ("a word", False)
    assert asyncio.run(first("reader")) == ("499 client_closed_request", True)
