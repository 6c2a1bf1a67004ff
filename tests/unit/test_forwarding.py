"""Requests on their way to an engine that is slow to begin: what a proxy sees meanwhile, and what a client gets in the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from studio import api
from studio.api import forwarding
from studio.engine.protocol import Contestant, ModelFolder
from studio.settings import STATIC

CHUNK = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "starter",
    "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}],
}  # fmt: skip
REFUSAL = {"error": {"message": "No memory.", "type": "server_error", "param": None, "code": "out_of_memory"}}
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


class SlowEngine(httpx.AsyncBaseTransport):
    """Begins to answer when it is let."""

    def __init__(self, status: int = 200) -> None:
        self.may_begin = asyncio.Event()
        self.status = status
        self.was_cancelled = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            await self.may_begin.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self.status >= 400:
            return httpx.Response(self.status, stream=httpx.ByteStream(json.dumps(REFUSAL).encode()))
        events = f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n"
        return httpx.Response(200, stream=httpx.ByteStream(events.encode()), headers={"content-type": "text/event-stream"})


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    made = FastAPI()
    api.add_routes(made)
    made.state.studio = SimpleNamespace(settings=SimpleNamespace(engine_url="http://engine/v1", engine_key=""))
    monkeypatch.setattr(forwarding, "resolve", lambda studio, name: Contestant(name, ModelFolder("starter", STATIC / "starter")))
    monkeypatch.setattr(forwarding, "SILENCE_S", 0.01)
    return made


async def lines(app: FastAPI, engine: SlowEngine, after: int) -> AsyncIterator[str]:
    """What comes over the wire, the engine being let once `after` comments were read."""
    app.state.engine = httpx.AsyncClient(transport=engine)
    body = {"model": "starter", "messages": MESSAGES, "stream": True, "colour": 1}
    seen: list[str] = []
    sending: list[dict[str, Any]] = []
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sending.append(message)
        text = message.get("body", b"").decode()
        seen.extend(text.split("\n\n"))
        if sum(line.startswith(":") for line in seen) >= after:
            engine.may_begin.set()

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"", "headers": [],
        "scheme": "http", "server": ("x", 1), "client": ("x", 1), "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 30)  # type: ignore[arg-type]
    assert (sending[0]["status"], dict(sending[0]["headers"])[b"studio-ignored"]) == (200, b"colour")
    for line in seen:
        if line:
            yield line


async def collected(app: FastAPI, engine: SlowEngine, after: int) -> list[str]:
    return [line async for line in lines(app, engine, after)]


def test_a_stream_that_has_not_begun_is_kept_open_by_comments(app: FastAPI) -> None:
    found = asyncio.run(collected(app, SlowEngine(), after=3))
    comments = [line for line in found if line.startswith(":")]
    assert len(comments) >= 3 and found[: len(comments)] == comments
    assert json.loads(found[len(comments)].removeprefix("data: ")) == CHUNK and found[-1] == "data: [DONE]"


def test_a_refusal_after_comments_is_an_event_of_the_stream(app: FastAPI) -> None:
    found = asyncio.run(collected(app, SlowEngine(503), after=1))
    assert json.loads(found[-1].removeprefix("data: ")) == REFUSAL


def test_a_refusal_at_once_keeps_its_status(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "SILENCE_S", 30)

    async def ask() -> int:
        engine = SlowEngine(503)
        engine.may_begin.set()
        app.state.engine = httpx.AsyncClient(transport=engine)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return (await client.post("/v1/chat/completions", json={"model": "starter", "messages": MESSAGES, "stream": True})).status_code

    assert asyncio.run(ask()) == 503


def test_the_openai_client_reads_over_comments(app: FastAPI) -> None:
    async def ask() -> list[str]:
        engine = SlowEngine()
        app.state.engine = httpx.AsyncClient(transport=engine)
        asyncio.get_running_loop().call_later(0.1, engine.may_begin.set)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        async with openai.AsyncOpenAI(base_url="http://x/v1", api_key="k", max_retries=0, http_client=http) as client:
            stream = await client.chat.completions.create(model="starter", messages=MESSAGES, stream=True)
            return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert asyncio.run(ask()) == ["Hi"]
