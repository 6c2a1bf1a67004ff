"""/v1: the OpenAI protocol for what is here. Turns a model's name into folders, then hands the request to the engine as it is.

Knows nothing of generation. A closed connection closes the engine's, which ends the generation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.api import json_bodies
from studio.api.openai_shapes import ChatCompletion, ModelEntry, ModelList, TextCompletion
from studio.engine import bodies, body_fields, protocol
from studio.engine.protocol import Contestant
from studio.engine.shapes import ErrorBody
from studio.errors import EngineError, NotFoundError, StudioError
from studio.records import Record
from studio.services import Studio
from studio.settings import Settings

router = APIRouter(prefix="/v1")
log = logging.getLogger(__name__)
CHAT = "/v1/chat/completions"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

ENGINE_WAIT_S = 120.0
RETRY_S = 0.25
# an answer may take long: only the connection has a limit
TIMEOUT = httpx.Timeout(None, connect=5.0)
PASSED_HEADERS = ("content-type", "retry-after", "cache-control")


def _as_json_or_events(shape: type[Record]) -> dict[int | str, dict[str, Any]]:
    """For the documentation: the answers are passed on as the engine makes them."""
    return {200: {"model": shape, "content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.get("/models")
def list_models(request: Request) -> ModelList:
    """What can answer here now: the starter, added bases, then BASE:ADAPTER."""
    studio: Studio = request.app.state.studio
    return ModelList(data=[ModelEntry(id=name, created=int(since)) for name, since in studio.adapters.available_since().items()])


@router.get("/models/{name:path}")
def show_model(request: Request, name: str) -> ModelEntry:
    studio: Studio = request.app.state.studio
    _resolve(studio, name)
    return ModelEntry(id=name, created=int(studio.adapters.available_since().get(name, 0)))


@router.post("/chat/completions", responses=_as_json_or_events(ChatCompletion), response_class=Response)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions; `grammar` (GBNF) is an extra field."""
    return await _forward(request, CHAT)


@router.post("/completions", responses=_as_json_or_events(TextCompletion), response_class=Response)
async def completions(request: Request) -> Response:
    """OpenAI's text completions; an empty prompt starts from BOS."""
    return await _forward(request, "/v1/completions")


@router.api_route("", methods=METHODS, include_in_schema=False)
@router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
def no_such_route(request: Request, path: str = "") -> Response:
    """OpenAI's error for what is not here, and for what is asked for by another method."""
    routes = [route for route in router.routes if isinstance(route, APIRoute) and route.include_in_schema]
    named = {method for route in routes if route.path_regex.match(f"/v1/{path}") for method in route.methods or ()}
    if named:
        allowed = ", ".join(sorted(named))
        error = EngineError(f"{request.method} is no method of /v1/{path[:100]}.", f"Use {allowed}.", status=405, code="method_not_allowed")
        return JSONResponse(protocol.error_body(error), 405, {"Allow": allowed})
    there = ", ".join(sorted({route.path for route in routes}))
    error = EngineError(f"There is no /v1/{path[:100]} here.", f"There is {there}.", status=404, code="unknown_url")
    return JSONResponse(protocol.error_body(error), 404)


class ClientPaths:
    """ASGI middleware for /v1: a path may end with a slash, and HEAD is a GET whose body is left out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        scope = {**scope, "path": scope["path"].rstrip("/")}
        if scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


def error_body(error: StudioError, status: int) -> ErrorBody:
    """OpenAI's shape of any of our errors."""
    if isinstance(error, NotFoundError):
        error = EngineError(error.message, error.fix, status=status, code="model_not_found", param="model")
    if not isinstance(error, EngineError):
        error = EngineError(error.message, error.fix, status=status, code="invalid_request")
    return protocol.error_body(error)


def _resolve(studio: Studio, name: str) -> Contestant:
    found = studio.adapters.resolve(name)
    if found.url:  # to forward to any address that a client names would open this machine's network to it
        raise NotFoundError(f"There is no model {name!r} here.", "GET /v1/models lists what there is.")
    return found


async def _forward(request: Request, path: str) -> Response:
    body = await _json(request)
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise protocol.bad_request("model is missing.", "GET /v1/models lists what there is.", param="model")
    studio: Studio = request.app.state.studio
    contestant = await run_in_threadpool(_resolve, studio, name)
    await run_in_threadpool(_add_folders, studio, contestant, body)
    ignored = bodies.ignored_fields(body, is_chat=path == CHAT)
    answer = await _while_connected(request, _send(request.app.state.engine, studio.settings, path, json.dumps(body).encode()))
    if answer is None:
        return Response(status_code=499)  # nobody reads it
    headers = {key: answer.headers[key] for key in PASSED_HEADERS if key in answer.headers}
    if ignored:
        headers[body_fields.IGNORED_HEADER] = body_fields.header(ignored)
        log.info("%s for %s: nothing here reads %s.", path, name[:200], headers[body_fields.IGNORED_HEADER])
    return StreamingResponse(_chunks(answer), status_code=answer.status_code, headers=headers)


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
        drafting = _resolve(studio, assistant)
        if drafting.base is None or drafting.adapter is not None:
            raise protocol.bad_request(
                f"assistant_model {assistant!r} is no base model.", "Name one, without an adapter.", param="assistant_model"
            )
        field["assistant"] = {"name": drafting.base.name, "path": str(drafting.base.path)}
        body.setdefault("speculation", "assistant")
    body["studio"] = field


async def _json(request: Request) -> dict[str, Any]:
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


async def _while_connected(request: Request, work: Any) -> httpx.Response | None:
    """Await `work`; give it up and return None when the client goes away first."""
    answering, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await answering if answering.done() else None
    finally:
        for task in (answering, leaving):
            task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.TransportError:
        if is_stream:  # headers are gone; the stream itself must say it
            error = EngineError("The engine ended in the middle of its answer.", "Ask again.", code="engine_died")
            yield f"data: {json.dumps(protocol.error_body(error))}\n\n".encode()
        else:
            raise
    finally:
        await answer.aclose()
