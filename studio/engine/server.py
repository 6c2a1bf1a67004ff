"""The engine's process: `python -m studio.engine.server --port N`. Speaks the OpenAI protocol on loopback.

Holds no model and no torch: these live in a process of their own (studio.engine.model_process), so that nothing of them stays where
the engine gives way. Knows folders, which each request names, and no database.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from studio import __version__, lifeline, settings
from studio.catalogue import torch_view
from studio.engine.leases import LeaseBook
from studio.engine.model_child import PARSERS, SWITCH_S
from studio.engine.model_process import ModelProcess
from studio.engine.protocol import FIX_HEADER, Event, bad_request, error_body
from studio.engine.replies import Reply
from studio.engine.scheduler import IDLE_S
from studio.engine.shapes import ChunkBody, ErrorBody
from studio.errors import EngineError

GRACE_S = 1  # for connections to close once their answers were ended
BACKLOG = 2048  # as uvicorn's
PASSING = ("engine_stopping", "engine_restarting")  # what is over at once
LAST_RESORT_S = 1.8  # a connection can hang, ending the process can't
READING_S = 60.0  # a tokenizer of a large vocabulary takes seconds to read

log = logging.getLogger("studio.engine")


class Exchange:
    """One request being answered: its number, and the queue its events arrive in."""

    def __init__(self, kind: str, body: Any) -> None:
        """Raises EngineError for a body that is none of `kind`."""
        self.request = PARSERS[kind](body)
        self.reply = Reply(self.request)
        self._asked = (kind, body)
        self._number: int | None = None
        self._model: ModelProcess | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def start(self, model: ModelProcess) -> None:
        """Raises EngineError where the engine is stopping."""
        self._model = model
        self._number = await run_in_threadpool(model.submit, *self._asked, self._deliver)

    def _deliver(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        """Raises the EngineError of a request that can't be answered, or of an answer that failed."""
        event = await self._events.get()
        if event.error is not None:
            raise event.error
        return event

    def end(self) -> None:
        """Stop what still runs; harmless when all is done."""
        if self._model is not None and self._number is not None:
            self._model.cancel(self._number)


class Routes:
    """The engine over HTTP."""

    def __init__(self, model: ModelProcess, leases: LeaseBook, key: str) -> None:
        self._model = model
        self._leases = leases
        self._key = key

    def mount(self, app: FastAPI) -> None:
        with_key = [Depends(self._check_key)]
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], dependencies=with_key)
        app.add_api_route("/v1/completions", self.complete, methods=["POST"], dependencies=with_key)
        app.add_api_route("/v1/embeddings", self.embed, methods=["POST"], dependencies=with_key)
        app.add_api_route("/tokenize", self.tokenize, methods=["POST"], dependencies=with_key)
        app.add_api_route("/detokenize", self.detokenize, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/status", self.status, methods=["GET"], dependencies=with_key)
        app.add_api_route("/engine/unload", self.unload, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/prompt", self.prompt, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/share", self.share, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/resume", self.resume, methods=["POST"], dependencies=with_key)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.exception_handler(EngineError)(_refuse)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, "chat")

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, "completion")

    async def embed(self, request: Request) -> Response:
        return await self._answer(request, "embedding")

    async def status(self) -> Response:
        found = await run_in_threadpool(self._model.status)
        return JSONResponse({**found.model_dump(mode="json", exclude={"ok"}), **self._lease()})

    async def unload(self, request: Request) -> Response:
        """With `{"job", "keep_bytes"}` the engine leaves that much to the job until `resume`, as long as it is renewed."""
        held = await run_in_threadpool(self._model.unload)
        if await request.body():
            await run_in_threadpool(self._leases.begin, *_job(await _read_json(request)), gave_way=True)
        return JSONResponse({"unloaded_bytes": held})

    async def share(self, request: Request) -> Response:
        """With `"renew": true` what was promised goes on as it is."""
        asked = await _read_json(request)
        job, keep_bytes = _job(asked)
        if asked.get("renew"):
            await run_in_threadpool(self._leases.renew, job, keep_bytes)
        else:
            await run_in_threadpool(self._leases.begin, job, keep_bytes)
        return JSONResponse(self._lease())

    async def prompt(self, request: Request) -> Response:
        """What a chat request would be read as: the rendered template and its tokens."""
        return await self._read(request, "preview")

    async def tokenize(self, request: Request) -> Response:
        return await self._read(request, "tokenize")

    async def detokenize(self, request: Request) -> Response:
        return await self._read(request, "detokenize")

    async def _read(self, request: Request, kind: str) -> Response:
        return JSONResponse(await run_in_threadpool(self._model.read, kind, await _read_json(request), READING_S))

    async def resume(self, request: Request) -> Response:
        asked = await _read_json(request)
        self._leases.end(_job({"keep_bytes": 0, **asked})[0])
        return JSONResponse(self._lease())

    def _lease(self) -> dict[str, Any]:
        lease = self._leases.now()
        return {"yielded": None if lease is None else lease.record().model_dump(mode="json")}

    async def health(self) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._key and not hmac.compare_digest(given.encode(), self._key.encode()):
            raise EngineError("The engine needs its key.", "Ask through the studio's own /v1.", status=401, code="invalid_api_key")

    async def _answer(self, request: Request, kind: str) -> Response:
        exchange = Exchange(kind, await _read_json(request))
        disconnected = asyncio.create_task(_disconnect(request))
        is_streamed = False
        try:
            await exchange.start(self._model)
            first = await _unless(disconnected, exchange.next())  # a refusal still gets its HTTP status
            if exchange.request.is_streaming:
                is_streamed = True
                return StreamingResponse(
                    _stream(exchange, first, FIX_HEADER in request.headers),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-store"},
                )
            exchange.reply.take(first)
            while not exchange.reply.is_complete:
                exchange.reply.take(await _unless(disconnected, exchange.next()))
            return JSONResponse(exchange.reply.body())
        finally:
            if not is_streamed:
                exchange.end()
            disconnected.cancel()


def _job(asked: Any) -> tuple[str, int]:
    try:
        return str(asked["job"]), int(asked["keep_bytes"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise bad_request("The body does not say which job needs how much.", 'Send {"job": name, "keep_bytes": bytes}.') from None


async def _read_json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise bad_request("The body is no JSON.", "Send a JSON object.", code="invalid_json") from None


async def _disconnect(request: Request) -> None:
    """Returns when the client has gone. The body was read before, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(disconnected: asyncio.Task[None], event: Awaitable[Event]) -> Event:
    """The next event, unless the client goes first."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait({waiting, disconnected}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    raise EngineError("The client has gone.", "Nobody reads this answer.", status=499, code="client_closed_request")


async def _stream(exchange: Exchange, first: Event, with_fix: bool) -> AsyncIterator[bytes]:
    """Server-sent events. Closing this generator, as a gone client does, stops the generation."""
    reply = exchange.reply
    try:
        for chunk in reply.first_chunks():
            yield _sse(chunk)
        event = first
        while True:
            for chunk in reply.chunks(event):
                yield _sse(chunk)
            if reply.is_complete:
                break
            event = await exchange.next()
        if exchange.request.include_usage:
            yield _sse(reply.usage_chunk())
        yield b"data: [DONE]\n\n"
    except EngineError as exc:
        yield _sse(error_body(exc, with_fix=with_fix))
    finally:
        exchange.end()


def _sse(value: ChunkBody | ErrorBody) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"  # ASCII: some clients split lines at U+2028 too


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    # clients repeat what answers 5xx; a model that does not fit will not fit at once after
    headers = {"x-should-retry": "false"} if error.status >= 500 and error.code not in PASSING else {}
    if "retry_after" in error.details:
        headers["Retry-After"] = str(error.details["retry_after"])
    body = error_body(error, with_fix=FIX_HEADER in request.headers)
    return JSONResponse(body, status_code=error.status, headers=headers)


def build_app(model: ModelProcess, leases: LeaseBook, key: str = "") -> FastAPI:
    """The engine's routes over `model`."""
    app = FastAPI(title="Adapter Studio engine", version=__version__, openapi_url=None)
    Routes(model, leases, key).mount(app)
    return app


class Server(uvicorn.Server):
    """Ends answers before uvicorn waits for their connections."""

    def __init__(self, config: uvicorn.Config, model: ModelProcess) -> None:
        super().__init__(config)
        self._model = model

    def handle_exit(self, sig: int, frame: Any) -> None:
        threading.Timer(LAST_RESORT_S, os._exit, args=(0,)).start()
        self._model.close()
        super().handle_exit(sig, frame)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studio.engine.server", description="The engine of Adapter Studio, on loopback.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one, printed as a URL")
    parser.add_argument("--idle-minutes", type=float, default=IDLE_S / 60, help="unload the model after this long without a request")
    options = parser.parse_args(arguments)
    options.idle_s = 60 * options.idle_minutes
    return options


def listen(port: int) -> socket.socket:
    """A socket that listens at `port` of 127.0.0.1, 0 for a free one; a port that is taken ends the process.

    It listens at once: whoever reads the printed address may come before uvicorn does, and would be refused.
    """
    # with the protocol named: asyncio sends small pieces at once (TCP_NODELAY) only on such sockets, and a first token would
    # else wait 40 ms for the acknowledgement of the headers before it
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
    except OSError as exc:
        sys.exit(f"Port {port} can't be used ({exc.strerror}). Choose another with --port.")
    return listener


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    sys.setswitchinterval(SWITCH_S)
    chosen = settings.load()
    torch_view.keep_in(chosen.cache)
    listener = listen(options.port)
    model = ModelProcess(options.idle_s)
    app = build_app(model, LeaseBook(chosen.cache if chosen.home.is_dir() else None), chosen.engine_key)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE_S, lifespan="off")
    server = Server(config, model)
    model.start()
    model.watch()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    lifeline.end_with_parent(grace_s=LAST_RESORT_S)
    server.run(sockets=[listener])
    model.close()
    os._exit(0)  # threads that listen may wait: nothing to tidy up there


if __name__ == "__main__":
    main()
