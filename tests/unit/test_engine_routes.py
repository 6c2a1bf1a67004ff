"""The engine's routes over a model that is a stand-in: keys, leases, refusals and the ends of answers."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from studio.engine import server
from studio.engine.leases import Lease
from studio.engine.protocol import FIX_HEADER, Event
from studio.errors import EngineError

LEASE = Lease("job", 5, 8, 0.0, gave_way=True)


class Model:
    """Says what it was asked for."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.refusal: Exception | None = None

    def unload(self) -> int:
        return 7

    def status(self) -> Any:
        return SimpleNamespace(model_dump=lambda mode, exclude: {"loaded": None})

    def read(self, kind: str, body: Any, seconds: float) -> Any:
        self.done.append((kind, body, seconds))
        if self.refusal:
            raise self.refusal
        return {"kind": kind}

    def submit(self, *asked: Any) -> int:
        if self.refusal:
            raise self.refusal
        return 3

    def cancel(self, number: int) -> None:
        self.done.append(("cancelled", number))


class Book:
    """A book of leases that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.lease: Lease | None = None

    def begin(self, *asked: Any, **more: Any) -> None:
        self.told.append(("begin", *asked, more))

    def renew(self, *asked: Any) -> None:
        self.told.append(("renew", *asked))

    def end(self, job: str) -> None:
        self.told.append(("end", job))

    def now(self) -> Lease | None:
        return self.lease


def client(model: Any, book: Any, key: str = "") -> TestClient:
    return TestClient(server.build_app(model, book, key), raise_server_exceptions=False)


def test_memory_is_given_back_promised_renewed_and_resumed() -> None:
    model, book = Model(), Book()
    engine = client(model, book)
    assert engine.post("/engine/unload").json() == {"unloaded_bytes": 7} and book.told == []
    engine.post("/engine/unload", json={"job": "a", "keep_bytes": "5"})
    engine.post("/engine/share", json={"job": "a", "keep_bytes": 6})
    engine.post("/engine/share", json={"job": "a", "keep_bytes": 6, "renew": True})
    engine.post("/engine/resume", json={"job": "a"})
    assert book.told == [("begin", "a", 5, {"gave_way": True}), ("begin", "a", 6, {}), ("renew", "a", 6), ("end", "a")]
    assert engine.get("/engine/status").json() == {"loaded": None, "yielded": None}
    book.lease = LEASE
    yielded = {"job": "job", "room_bytes": 3, "keep_bytes": 5, "gave_way": True}
    assert engine.get("/engine/status").json()["yielded"] == yielded


@pytest.mark.parametrize(
    "body", ['{"job": "a"}', '{"keep_bytes": 1}', "[]", '{"job": "a", "keep_bytes": "x"}', '{"job": "a", "keep_bytes": 1e999}', "{"]
)
def test_a_promise_says_to_whom_and_how_much(body: str) -> None:
    book = Book()
    assert client(Model(), book).post("/engine/share", content=body).status_code == 400 and book.told == []


@pytest.mark.parametrize(
    ("key", "header", "status"),
    [
        ("", {}, 200),
        ("k", {}, 401),
        ("k", {"authorization": "Bearer x"}, 401),
        ("k", {"authorization": "Bearer k "}, 200),
        ("k", {"authorization": "k"}, 200),
    ],
)
def test_an_engine_with_a_key_asks_for_it(key: str, header: dict[str, str], status: int) -> None:
    engine = client(Model(), Book(), key)
    assert engine.get("/engine/status", headers=header).status_code == status
    assert engine.get("/health").status_code == 200, "whether it lives anybody may know"


@pytest.mark.parametrize(
    ("error", "retry", "after"),
    [
        (EngineError("m", "f", status=503, code="out_of_memory"), "false", None),
        (EngineError("m", "f", status=503, code="engine_stopping"), None, None),
        (EngineError("m", "f", status=503, code="engine_restarting", retry_after=9), None, "9"),
        (EngineError("m", "f", status=500, code="x"), "false", None),
        (EngineError("m", "f", status=499, code="x"), None, None),
        (EngineError("m", "f", status=429, code="queue_full", retry_after=4), None, "4"),
    ],
)
@pytest.mark.parametrize("with_fix", [True, False])
def test_a_refusal_says_whether_to_ask_again(error: EngineError, retry: str | None, after: str | None, with_fix: bool) -> None:
    model = Model()
    model.refusal = error
    answer = client(model, Book()).post("/engine/prompt", json={"a": 1}, headers={FIX_HEADER: "1"} if with_fix else {})
    assert answer.status_code == error.status and model.done == [("preview", {"a": 1}, 60.0)]
    assert (answer.headers.get("x-should-retry"), answer.headers.get("retry-after")) == (retry, after)
    assert ("fix" in json.dumps(answer.json())) is with_fix and answer.json()["error"]["code"] == error.code


def exchange(monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    monkeypatch.setitem(server.PARSERS, "chat", lambda body: SimpleNamespace(is_streaming=False, include_usage=False, **more))  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(server, "Reply", lambda request: SimpleNamespace(is_complete=True))
    return server.Exchange("chat", {})


def test_only_an_answer_that_has_begun_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        model = Model()
        one = exchange(monkeypatch)
        one.end()
        model.refusal = EngineError("m", "f", status=503, code="x")
        with pytest.raises(EngineError):
            await one.start(model)
        one.end()
        assert model.done == []
        model.refusal = None
        await one.start(model)
        one.end()
        assert model.done == [("cancelled", 3)]

    asyncio.run(run())


def test_events_arrive_in_their_order_and_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        one = exchange(monkeypatch)
        error = EngineError("m", "f", status=500, code="x")
        for event in (Event(text="a"), Event(error=error)):
            one._deliver(event)
        assert (await one.next()).text == "a"
        with pytest.raises(EngineError):
            await one.next()

    asyncio.run(run())


def test_a_client_that_goes_ends_the_wait() -> None:
    async def run() -> None:
        messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        gone = asyncio.create_task(server._disconnect(SimpleNamespace(receive=receive)))  # type: ignore[arg-type]
        never: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        with pytest.raises(EngineError) as refused:
            await server._unless(gone, never)
        assert refused.value.status == 499 and messages == []
        done: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        done.set_result(Event(text="a"))
        assert (await server._unless(asyncio.create_task(asyncio.sleep(9)), done)).text == "a"

    asyncio.run(run())


def test_a_stream_ends_with_its_usage_or_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(include_usage: bool, fails: bool) -> str:
        ended: list[str] = []
        reply = SimpleNamespace(first_chunks=lambda: [1], chunks=lambda event: [event], is_complete=False, usage_chunk=lambda: 9)

        async def following() -> Any:
            if fails:
                raise EngineError("m", "f", status=500, code="x")
            reply.is_complete = True
            return 3

        one: Any = SimpleNamespace(
            reply=reply, request=SimpleNamespace(include_usage=include_usage), next=following, end=lambda: ended.append("ended")
        )  # fmt: skip
        found = b"".join([part async for part in server._stream(one, 2, with_fix=True)])  # type: ignore[arg-type]
        assert ended == ["ended"]
        return found.decode()

    assert asyncio.run(run(False, False)) == "data: 1\n\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n"
    assert asyncio.run(run(True, False)).endswith("data: 3\n\ndata: 9\n\ndata: [DONE]\n\n")
    failed = asyncio.run(run(True, True))
    assert '"code": "x"' in failed and "DONE" not in failed and '"fix"' in failed
