"""/v1: the OpenAI protocol for what is here, handed on to the engine (studio.api.forwarding); and vLLM's /tokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.api import forwarding
from studio.api.openai_shapes import (
    ChatCompletion,
    Detokenized,
    Embeddings,
    ModelEntry,
    ModelList,
    ModelResponse,
    TextCompletion,
    Tokenized,
)
from studio.api.responses import respond
from studio.engine import bodies, protocol, reading_bodies
from studio.engine.shapes import ErrorBody
from studio.errors import EngineError, NotFoundError, StudioError
from studio.records import Record
from studio.services import Studio

router = APIRouter(prefix="/v1")
beside = APIRouter()  # what vLLM has outside /v1
BESIDE = ("/tokenize", "/detokenize")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


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
    forwarding.resolve(studio, name)
    return ModelEntry(id=name, created=int(studio.adapters.available_since().get(name, 0)))


@router.post("/chat/completions", responses=_as_json_or_events(ChatCompletion), response_class=Response)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions; `grammar` (GBNF) is an extra field."""
    return await forwarding.forward(request, "/v1/chat/completions", bodies.CHAT_FIELDS)


@router.post("/completions", responses=_as_json_or_events(TextCompletion), response_class=Response)
async def completions(request: Request) -> Response:
    """OpenAI's text completions; an empty prompt starts from BOS. `echo` begins the answer with the prompt, `logprobs` with its too."""
    return await forwarding.forward(request, "/v1/completions", bodies.COMPLETION_FIELDS)


@router.post("/responses", responses=_as_json_or_events(ModelResponse), response_class=Response)
async def responses(request: Request) -> Response:
    """OpenAI's responses, over chat completions. Nothing is kept: `input` is the whole conversation."""
    return await respond(request)


@router.post("/embeddings", responses={200: {"model": Embeddings}}, response_class=Response)
async def embeddings(request: Request) -> Response:
    """Vectors of texts, each of length 1: the mean of the model's last hidden states."""
    return await forwarding.forward(request, "/v1/embeddings", reading_bodies.EMBEDDING_FIELDS)


@beside.post("/tokenize", responses={200: {"model": Tokenized}}, response_class=Response)
async def tokenize(request: Request) -> Response:
    """Tokens of a `prompt` or of `messages`, as vLLM shapes them."""
    return await forwarding.forward(request, "/tokenize", reading_bodies.TOKENIZE_FIELDS)


@beside.post("/detokenize", responses={200: {"model": Detokenized}}, response_class=Response)
async def detokenize(request: Request) -> Response:
    """The text of `tokens`, as vLLM shapes it."""
    return await forwarding.forward(request, "/detokenize", reading_bodies.DETOKENIZE_FIELDS)


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


def is_of_programs(path: str) -> bool:
    """Whether who asks at `path` expects OpenAI's shape of errors."""
    return path.startswith("/v1/") or path in BESIDE


def error_body(error: StudioError, status: int) -> ErrorBody:
    """OpenAI's shape of any of our errors."""
    if isinstance(error, NotFoundError):
        error = EngineError(error.message, error.fix, status=status, code="model_not_found", param="model")
    if not isinstance(error, EngineError):
        error = EngineError(error.message, error.fix, status=status, code="invalid_request")
    return protocol.error_body(error)
