"""The client against servers that answer as servers in the wild do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant, Grammar, ModelFolder
from studio.errors import EngineError
from studio.types import GenerationParams

PARAMS = GenerationParams(temperature=0)
MESSAGES = [{"role": "user", "content": "hi"}]


class Server(ThreadingHTTPServer):
    """Gives the scripted `answers` (status, headers, body) in turn, the last one again and again; remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def script(self, *answers: tuple[int, dict[str, str], bytes | str | dict[str, Any]]) -> None:
        self.answers = [
            (s, h, json.dumps(b).encode() if isinstance(b, dict) else b.encode() if isinstance(b, str) else b) for s, h, b in answers
        ]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, headers, content = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[EngineClient]:
    made = EngineClient(server.url, "our-key", start_s=2.0)
    yield made
    made.close()


def foreign(server: Server, path: str = "/v1") -> Contestant:
    return Contestant("them", url=server.url + path, model="their-model")


OURS = Contestant("base", ModelFolder("b", Path("/b")))
WHOLE = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


def test_another_server_is_told_neither_our_key_nor_our_folders(server: Server, client: EngineClient) -> None:
    server.script((200, {}, WHOLE))
    assert client.chat(foreign(server, ""), MESSAGES, PARAMS).text == "hello"
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and body["model"] == "their-model"
    assert "authorization" not in headers and not {"studio", "top_k", "repetition_penalty", "seed", "stop"} & body.keys()


def test_our_engine_is_told_the_folders_and_everything_that_was_set(server: Server, client: EngineClient) -> None:
    server.script((200, {}, WHOLE))
    params = GenerationParams(temperature=0.5, top_k=4, seed=0, stop=("X",), max_new_tokens=7)
    done = client.chat(OURS, MESSAGES, params, grammar=Grammar("gbnf", "root ::= [a]"))
    _, headers, body = server.asked[0]
    assert headers["authorization"] == "Bearer our-key"
    assert body["studio"] == {"base": {"name": "b", "path": "/b"}, "adapter": None, "chat_template": None}
    assert (body["top_k"], body["seed"], body["stop"], body["max_tokens"], body["grammar"]) == (4, 0, ["X"], 7, "root ::= [a]")
    assert (done.prompt_tokens, done.completion_tokens, done.finish_reason) == (3, 1, "stop")


def test_a_stream_without_usage_and_with_odd_chunks_is_read(server: Server, client: EngineClient) -> None:
    chunks: list[dict[str, Any]] = [
        {"choices": []},
        {"choices": [{"delta": {"role": "assistant", "content": None}}]},
        {"choices": [{"delta": {"content": "one\u2028line"}}], "usage": None},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    lines = [": comment", *("data:" + json.dumps(chunk, ensure_ascii=False) for chunk in chunks), "data: [DONE]", ""]
    server.script((200, {}, "\r\n\r\n".join(lines)))
    events = list(client.stream(foreign(server), MESSAGES, PARAMS))
    assert "".join(event.text for event in events) == "one\u2028line"
    assert (events[-1].finish_reason, events[-1].usage) == ("stop", None)


def test_a_stream_that_breaks_off_keeps_its_text_and_says_so(server: Server, client: EngineClient) -> None:
    server.script((200, {}, 'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'))
    stream = client.stream(OURS, MESSAGES, PARAMS)
    assert next(stream).text == "half"
    with pytest.raises(EngineError) as broken:
        next(stream)
    assert broken.value.code == "engine_gone" and broken.value.fix


def test_an_error_in_a_stream_is_raised(server: Server, client: EngineClient) -> None:
    server.script((200, {}, 'data: {"error": {"message": "no memory", "code": "out_of_memory"}}\n\n'))
    with pytest.raises(EngineError, match="no memory") as failed:
        list(client.stream(OURS, MESSAGES, PARAMS))
    assert failed.value.code == "out_of_memory"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages"}}, "too long"),
        ({"detail": "not here"}, "not here"),
        ({"error": "plain words"}, "plain words"),
        ("<html>", "status 404"),
    ],
)
def test_errors_of_every_shape_are_understood(server: Server, client: EngineClient, body: Any, message: str) -> None:
    server.script((404, {}, body))
    with pytest.raises(EngineError, match=message) as failed:
        client.chat(foreign(server), MESSAGES, PARAMS)
    assert failed.value.status == 404


def test_what_is_no_json_is_said_to_be_none(server: Server, client: EngineClient) -> None:
    server.script((200, {}, "<html>It works!</html>"))
    with pytest.raises(EngineError, match="html") as failed:
        client.chat(foreign(server), MESSAGES, PARAMS)
    assert "/v1" in failed.value.fix


def test_a_full_queue_and_a_restart_are_waited_out(server: Server, client: EngineClient) -> None:
    full = (429, {"Retry-After": "1"}, {"error": {"message": "full"}})
    ending = (503, {}, {"error": {"message": "stopping", "code": "engine_stopping"}})
    server.script(full, ending, (200, {}, WHOLE))
    started = time.monotonic()
    assert client.chat(OURS, MESSAGES, PARAMS).text == "hello"
    assert time.monotonic() - started >= 1
    server.script((429, {"Retry-After": "9"}, {"error": {"message": "full"}}))
    with pytest.raises(EngineError) as refused:
        client.chat(OURS, MESSAGES, PARAMS)
    assert (refused.value.status, refused.value.details["retry_after"]) == (429, 9)


def test_nobody_there_is_one_clear_error(server: Server) -> None:
    nobody = EngineClient("http://127.0.0.1:9", start_s=0.3)
    for ask in (lambda: nobody.chat(OURS, MESSAGES, PARAMS), nobody.status):
        with pytest.raises(EngineError, match="Nothing answers") as failed:
            ask()
        assert failed.value.code == "engine_unreachable" and "studio up" in failed.value.fix
    nobody.close()
    nowhere = EngineClient("")
    with pytest.raises(EngineError, match="No engine is running"):
        nowhere.chat(OURS, MESSAGES, PARAMS)
    nowhere.close()


def test_a_key_goes_to_the_address_it_was_given_for_and_nowhere_else(server: Server) -> None:
    with_key = EngineClient("", api_keys=[(f"{server.url}/v1", "theirs"), ("https://elsewhere.example", "other")])
    server.script((200, {}, WHOLE), (200, {}, WHOLE))
    with_key.chat(foreign(server), MESSAGES, PARAMS)
    with_key.close()
    assert server.asked[0][1]["authorization"] == "Bearer theirs"
    without = EngineClient("", api_keys=[(f"{server.url}/v1/deeper", "theirs")])
    without.chat(foreign(server), MESSAGES, PARAMS)
    without.close()
    assert "authorization" not in server.asked[1][1]


def test_a_server_that_refuses_a_schema_is_asked_in_plainer_forms_and_remembered(server: Server, client: EngineClient) -> None:
    schema = Grammar("json_schema", '{"type": "object"}')
    server.script((500, {}, "{}"), (400, {}, "{}"), (200, {}, WHOLE), (200, {}, WHOLE))
    for _ in range(2):
        client.chat(foreign(server), MESSAGES, PARAMS, grammar=schema)
    forms = [body.get("response_format", {}).get("type") for _, _, body in server.asked]
    assert forms == ["json_schema", "json_object", None, None]


REFUSALS: dict[str, Any] = {
    "OpenAI": {
        "error": {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        }
    },
    "Mistral": {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}},
    "vLLM": {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'presence_penalty')}]", "code": 400},
}


@pytest.mark.parametrize("maker", REFUSALS)
def test_a_field_that_a_server_refuses_is_left_out_or_renamed_and_remembered(server: Server, client: EngineClient, maker: str) -> None:
    server.script((400 if maker != "Mistral" else 422, {}, REFUSALS[maker]), (200, {}, WHOLE), (200, {}, WHOLE))
    params = GenerationParams(temperature=0, seed=1, presence_penalty=1, max_new_tokens=9)
    for _ in range(2):
        assert client.chat(foreign(server), MESSAGES, params).text == "hello"
    first, second, third = (body for _, _, body in server.asked)
    gone = {"OpenAI": "max_tokens", "Mistral": "seed", "vLLM": "presence_penalty"}[maker]
    assert gone in first and gone not in second and second == third
    assert first["temperature"] == second["temperature"] == 0
    assert second.get("max_completion_tokens", second.get("max_tokens")) == 9


def test_a_refusal_of_a_value_stays_a_refusal(server: Server, client: EngineClient) -> None:
    server.script((400, {}, {"error": {"message": "temperature must be at most 2", "param": "temperature"}}), (200, {}, WHOLE))
    with pytest.raises(EngineError, match="at most 2"):
        client.chat(foreign(server), MESSAGES, GenerationParams(temperature=4))


def test_a_service_that_stumbles_is_asked_again(server: Server, client: EngineClient) -> None:
    server.script((503, {}, "{}"), (200, {}, WHOLE))
    assert client.chat(foreign(server), MESSAGES, PARAMS).text == "hello"


def test_a_model_that_is_being_loaded_is_waited_for(server: Server, client: EngineClient) -> None:
    loading = (503, {"Retry-After": "0"}, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})
    server.script(*[loading] * 4, (200, {}, WHOLE))
    assert client.chat(foreign(server), MESSAGES, PARAMS).text == "hello"


def test_an_answer_in_parts_is_read(server: Server, client: EngineClient) -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    server.script((200, {}, {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}))
    assert client.chat(foreign(server), MESSAGES, PARAMS).text == "hello"
