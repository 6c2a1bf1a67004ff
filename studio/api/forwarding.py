"""Requests of programs on their way to the engine: a model's name becomes folders, the rest goes on as it is.

Knows nothing of generation. A closed connection closes the engine's, which ends the generation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from studio.api import json_bodies
from studio.engine import body_fields, protocol
from studio.engine.protocol import Contestant
from studio.errors import EngineError, NotFoundError, StudioError
from studio.services import Studio
from studio.settings import Settings

log = logging.getLogger(__name__)

ENGINE_WAIT_S = 120.0
RETRY_S = 0.25
# an answer may take long: only the connection has a limit
TIMEOUT = httpx.Timeout(None, connect=5.0)
PASSED_HEADERS = ("content-type", "retry-after", "cache-control")
# a stream that has not begun by then begins with comments, one after each such pause: proxies close connections that are silent
SILENCE_S = 10.0
COMMENT = b": the answer has not begun yet, the model may be loading\n\n"


def resolve(studio: Studio, name: str) -> Contestant:
    found = studio.adapters.resolve(name)
    if found.url:  # to forward to any address that a client names would open this machine's network to it
        raise NotFoundError(f"There is no model {name!r} here.", "GET /v1/models lists what there is.")
    return found


@dataclass(frozen=True)
class Errand:
    """A request that is ready to be sent to the engine. `headers`: what its answer says beside the engine's own."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]

    @property
    def is_streamed(self) -> bool:
        return self.body.get("stream") is True


class AnswerShape(Protocol):
    """Another shape of an answer of chat."""

    def whole(self, answer: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]: ...


async def forward(request: Request, path: str, known: frozenset[str]) -> Response:
    """The engine's answer to the request's body as it is. `known`: the fields that are read there."""
    return await passed_on(request, await errand(request, path, await json_of(request), known))


async def errand(request: Request, path: str, body: dict[str, Any], known: frozenset[str]) -> Errand:
    """Raises EngineError and NotFoundError for a model that is not here."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise protocol.bad_request("model is missing.", "GET /v1/models lists what there is.", param="model")
    studio: Studio = request.app.state.studio
    contestant = await run_in_threadpool(resolve, studio, name)
    await run_in_threadpool(_add_folders, studio, contestant, body)
    headers = {}
    if ignored := body_fields.ignored(body, known):
        headers[body_fields.IGNORED_HEADER] = body_fields.header(ignored)
        log.info("%s for %s: nothing here reads %s.", path, name[:200], headers[body_fields.IGNORED_HEADER])
    return Errand(path, body, headers)


async def passed_on(request: Request, sent: Errand, shape: AnswerShape | None = None) -> Response:
    """The engine's answer, byte by byte, or in another shape."""
    sending, leaving = asyncio.ensure_future(send(request, sent)), asyncio.ensure_future(_disconnect(request))
    patience = SILENCE_S if sent.is_streamed else None
    try:
        done, _ = await asyncio.wait({sending, leaving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        sending.cancel()
        raise
    finally:
        leaving.cancel()
    if not done:
        chunks = _commented(sending)
        told = {"Cache-Control": "no-store", **sent.headers}
        return StreamingResponse(shape.events(chunks) if shape else chunks, media_type="text/event-stream", headers=told)
    if not sending.done():
        sending.cancel()
        return Response(status_code=499)  # nobody reads it
    answer = await sending
    headers = {key: answer.headers[key] for key in PASSED_HEADERS if key in answer.headers}
    headers |= sent.headers
    if shape is None or answer.status_code >= 400:
        return StreamingResponse(_chunks(answer), status_code=answer.status_code, headers=headers)
    if _is_stream(answer):
        return StreamingResponse(shape.events(_chunks(answer)), headers=headers)
    try:
        return JSONResponse(shape.whole(json.loads(await answer.aread())), headers=sent.headers)
    finally:
        await answer.aclose()


async def send(request: Request, sent: Errand) -> httpx.Response:
    """The engine's answer up to its headers. Raises EngineError."""
    return await _send(request.app.state.engine, request.app.state.studio.settings, sent.path, json.dumps(sent.body).encode())


def _add_folders(studio: Studio, contestant: Contestant, body: dict[str, Any]) -> None:
    """Folders for names: the model's, and with `assistant_model` the one that drafts. Paths of a client's own never get through."""
    quantization = body.get("quantization") or ""
    if quantization not in protocol.QUANTIZATIONS:
        raise protocol.bad_request(
            "quantization is unknown.", f"Choose one of {', '.join(protocol.QUANTIZATIONS[1:])}.", param="quantization"
        )
    field = replace(contestant, quantization=quantization).studio_field()
    assert field is not None, "a model of this studio"
    assistant = body.get("assistant_model")
    if isinstance(assistant, str) and assistant:
        drafting = resolve(studio, assistant)
        if drafting.base is None or drafting.adapter is not None:
            raise protocol.bad_request(
                f"assistant_model {assistant!r} is no base model.", "Name one, without an adapter.", param="assistant_model"
            )
        field["assistant"] = {"name": drafting.base.name, "path": str(drafting.base.path)}
        body.setdefault("speculation", "assistant")
    body["studio"] = field


async def json_of(request: Request) -> dict[str, Any]:
    try:
        body = json_bodies.parsed(await request.body())
    except StudioError as exc:
        raise protocol.bad_request(exc.message, exc.fix, code="invalid_json") from None
    except ValueError:
        raise protocol.bad_request("The body is not valid JSON.", "Send a JSON object.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise protocol.bad_request("The body is no JSON object.", "Send an object in braces.", code="invalid_json")
    return body


async def _send(client: httpx.AsyncClient, settings: Settings, path: str, content: bytes) -> httpx.Response:
    """The engine's answer up to its headers; waits for an engine that starts, and asks again once when it dies meanwhile."""
    if not settings.engine_url:
        raise EngineError("No engine runs here.", "Start the whole studio with `studio up`.", status=503, code="engine_unavailable")
    headers = {"Content-Type": "application/json"}
    if settings.engine_key:
        headers["Authorization"] = f"Bearer {settings.engine_key}"
    url = settings.engine_url.removesuffix("/v1") + path
    deadline = time.monotonic() + ENGINE_WAIT_S
    deaths = 0
    while True:
        try:
            return await client.send(client.build_request("POST", url, content=content, headers=headers), stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if time.monotonic() > deadline:
                said = f"The engine did not start within {ENGINE_WAIT_S:.0f} s."
                raise EngineError(said, "See the engine's log in STUDIO_HOME/logs.", status=503, code="engine_unavailable") from None
        except httpx.TransportError:
            deaths += 1
            if deaths > 1:
                said = "The engine ended while it answered, twice: it may lack memory for this model."
                raise EngineError(said, "Try a smaller model or a shorter prompt.", status=502, code="engine_died") from None
        await asyncio.sleep(RETRY_S)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_stream(answer: httpx.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("text/event-stream")


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.TransportError:
        if _is_stream(answer):  # headers are gone; the stream itself must say it
            error = EngineError("The engine ended in the middle of its answer.", "Ask again.", code="engine_died")
            yield f"data: {json.dumps(protocol.error_body(error))}\n\n".encode()
        else:
            raise
    finally:
        await answer.aclose()


async def _commented(sending: asyncio.Future[httpx.Response]) -> AsyncIterator[bytes]:
    """Comments until the answer begins, then the answer; what refuses it comes as an event, since the headers are gone."""
    try:
        while not sending.done():
            yield COMMENT
            await asyncio.wait({sending}, timeout=SILENCE_S)
        answer = await sending
        if answer.status_code < 400:
            async for chunk in _chunks(answer):
                yield chunk
        else:
            try:
                yield b"data: " + (await answer.aread()).replace(b"\n", b" ") + b"\n\n"
            finally:
                await answer.aclose()
    except EngineError as exc:
        yield f"data: {json.dumps(protocol.error_body(exc))}\n\n".encode()
    finally:
        sending.cancel()
