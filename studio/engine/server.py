"""The engine's process: `python -m studio.engine.server --port N`. Speaks the OpenAI protocol on loopback.

Light until the first request: torch comes with the first load. Knows folders, which each request names, and no database.
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
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from studio import __version__, lifeline, settings
from studio.catalogue import torch_view
from studio.engine import card
from studio.engine.answer import GeneratedAnswer
from studio.engine.bodies import parse_chat, parse_completion
from studio.engine.protocol import FIX_HEADER, Event, GenerationRequest, bad_request, error_body
from studio.engine.replies import Reply
from studio.engine.scheduler import IDLE_S, Scheduler
from studio.engine.shapes import ChunkBody, ErrorBody
from studio.errors import EngineError

GRACE_S = 1  # for connections to close once their answers were ended
SWITCH_S = 0.001  # the thread that computes lets the one that speaks go first: a token shall not wait for the next one
LAST_RESORT_S = 1.8  # a step of a large model can't be interrupted, ending the process can

log = logging.getLogger("studio.engine")


class Exchange:
    """One request being answered: the answers in the making and the queue their events arrive in."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.reply = Reply(request)
        self._answers: list[GeneratedAnswer] = []
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def start(self, scheduler: Scheduler) -> None:
        """Raises EngineError when the request can't be answered or the queue is full."""
        from studio.engine import intake  # tokenizers and grammars: not needed while idle

        self._answers = await run_in_threadpool(intake.prepare, self.request, self._deliver)
        scheduler.submit(self._answers)

    def _deliver(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        """Raises the EngineError of an answer that failed."""
        event = await self._events.get()
        if event.error is not None:
            raise event.error
        return event

    def end(self) -> None:
        """Stop what still runs; harmless when all is done."""
        for answer in self._answers:
            answer.cancel()


class Routes:
    """The engine over HTTP."""

    def __init__(self, scheduler: Scheduler, key: str) -> None:
        self._scheduler = scheduler
        self._key = key

    def mount(self, app: FastAPI) -> None:
        with_key = [Depends(self._check_key)]
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], dependencies=with_key)
        app.add_api_route("/v1/completions", self.complete, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/status", self.status, methods=["GET"], dependencies=with_key)
        app.add_api_route("/engine/unload", self.unload, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/prompt", self.prompt, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/share", self.share, methods=["POST"], dependencies=with_key)
        app.add_api_route("/engine/resume", self.resume, methods=["POST"], dependencies=with_key)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.exception_handler(EngineError)(_refuse)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, parse_chat)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, parse_completion)

    async def status(self) -> Response:
        return JSONResponse(self._scheduler.status().model_dump(mode="json", exclude={"ok"}))

    async def unload(self, request: Request) -> Response:
        """With `{"job", "keep_bytes"}` the engine leaves that much to the job until `resume`."""
        held = await run_in_threadpool(self._scheduler.unload)
        if await request.body():
            self._scheduler.share(*_job(await _read_json(request)), gave_way=True)
        return JSONResponse({"unloaded_bytes": held})

    async def share(self, request: Request) -> Response:
        self._scheduler.share(*_job(await _read_json(request)))
        return self._lease()

    async def prompt(self, request: Request) -> Response:
        """What a chat request would be read as: the rendered template and its tokens."""
        from studio.engine import intake

        preview = await run_in_threadpool(intake.preview, parse_chat(await _read_json(request)))
        return JSONResponse(preview.model_dump(mode="json"))

    async def resume(self, request: Request) -> Response:
        asked = await _read_json(request)
        self._scheduler.resume(_job({"keep_bytes": 0, **asked})[0])
        return self._lease()

    def _lease(self) -> Response:
        return JSONResponse(self._scheduler.status().model_dump(mode="json", include={"yielded"}))

    async def health(self) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    async def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._key and not hmac.compare_digest(given.encode(), self._key.encode()):
            raise EngineError("The engine needs its key.", "Ask through the studio's own /v1.", status=401, code="invalid_api_key")

    async def _answer(self, request: Request, parse: Callable[[Any], GenerationRequest]) -> Response:
        exchange = Exchange(parse(await _read_json(request)))
        disconnected = asyncio.create_task(_disconnect(request))
        try:
            await exchange.start(self._scheduler)
            first = await _unless(disconnected, exchange.next())  # a refusal still gets its HTTP status
            if exchange.request.is_streaming:
                return StreamingResponse(
                    _stream(exchange, first, FIX_HEADER in request.headers),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-store"},
                )
            exchange.reply.take(first)
            while not exchange.reply.is_complete:
                exchange.reply.take(await _unless(disconnected, exchange.next()))
            return JSONResponse(exchange.reply.body())
        except BaseException:
            exchange.end()
            raise
        finally:
            disconnected.cancel()


def _job(asked: Any) -> tuple[str, int]:
    try:
        return str(asked["job"]), int(asked["keep_bytes"])
    except (KeyError, TypeError, ValueError):
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
    headers = {"x-should-retry": "false"} if error.status >= 500 and error.code != "engine_stopping" else {}
    if "retry_after" in error.details:
        headers["Retry-After"] = str(error.details["retry_after"])
    body = error_body(error, with_fix=FIX_HEADER in request.headers)
    return JSONResponse(body, status_code=error.status, headers=headers)


def build_app(scheduler: Scheduler, key: str = "") -> FastAPI:
    """The engine's routes over `scheduler`."""
    app = FastAPI(title="Adapter Studio engine", version=__version__, openapi_url=None)
    Routes(scheduler, key).mount(app)
    return app


class Server(uvicorn.Server):
    """Ends answers before uvicorn waits for their connections."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler) -> None:
        super().__init__(config)
        self._scheduler = scheduler

    def handle_exit(self, sig: int, frame: Any) -> None:
        threading.Timer(LAST_RESORT_S, os._exit, args=(0,)).start()
        self._scheduler.close()
        super().handle_exit(sig, frame)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m studio.engine.server", description="The engine of Adapter Studio, on loopback.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one, printed as a URL")
    parser.add_argument("--idle-minutes", type=float, default=IDLE_S / 60, help="unload the model after this long without a request")
    return parser.parse_args(arguments)


def listen(port: int) -> socket.socket:
    """A socket of 127.0.0.1 at `port`, 0 for a free one; a port that is taken ends the process."""
    # with the protocol named: asyncio sends small pieces at once (TCP_NODELAY) only on such sockets, and a first token would
    # else wait 40 ms for the acknowledgement of the headers before it
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as exc:
        sys.exit(f"Port {port} can't be used ({exc.strerror}). Choose another with --port.")
    return listener


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # models come from outside: no token within reach, nothing fetched
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    # peft would import it and torch's compiler with it: 3 s and 50 MB, until a quantised base is asked for (studio.engine.loading)
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    sys.setswitchinterval(SWITCH_S)
    chosen = settings.load()
    torch_view.keep_in(chosen.cache)
    card.take_freest()
    listener = listen(options.port)
    times = chosen.cache / "load_times.json" if chosen.cache.is_dir() else None
    scheduler = Scheduler(idle_s=options.idle_minutes * 60, times_path=times, adapter_bytes=chosen.adapter_memory_bytes)
    scheduler.start()
    config = uvicorn.Config(build_app(scheduler, chosen.engine_key), log_level="warning", timeout_graceful_shutdown=GRACE_S, lifespan="off")
    server = Server(config, scheduler)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    lifeline.end_with_parent(grace_s=LAST_RESORT_S)
    server.run(sockets=[listener])
    os._exit(0)  # the engine's thread may be deep in torch: nothing to tidy up there


if __name__ == "__main__":
    main()
