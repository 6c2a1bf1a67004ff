"""Bodies of requests as JSON is defined. Python reads more: NaN, infinity, and half of a surrogate pair, which no file takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from studio.errors import StudioError


def parsed(content: bytes) -> Any:
    """What a body says. Raises StudioError, and json.JSONDecodeError where it is no JSON at all."""
    try:
        body = json.loads(content, parse_constant=_no_number, parse_float=_number)
    except RecursionError:
        raise StudioError("The body is nested too deeply.", "Send less nested JSON.") from None
    except UnicodeDecodeError:
        raise StudioError("The body is no UTF-8.", "Send JSON in UTF-8.") from None
    named = body.items() if isinstance(body, dict) else [("The body", body)]
    for name, value in named:
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            shown = name.encode(errors="replace").decode()
            raise StudioError(
                f"{shown} holds half a character (a lone surrogate), which is no text.", "Cut texts between characters."
            ) from None
        except RecursionError:  # read at the very limit
            raise StudioError("The body is nested too deeply.", "Send less nested JSON.") from None
    return body


def _no_number(text: str) -> Any:
    raise StudioError(f"{text} is no number of JSON.", "Leave it out, or send null.")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StudioError(f"{text[:40]} is larger than any number here.", "Send a smaller one.")
    return value


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            return parsed(await self.body())
        except StudioError as exc:
            raise HTTPException(400, str(exc)) from None


class JsonRoute(APIRoute):
    """A route whose body is read by `parsed`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler
