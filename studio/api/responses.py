"""/v1/responses, over chat completions: the request and its answer change their shape on the way, and nothing is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from studio.api import forwarding
from studio.engine import bodies, response_requests
from studio.engine.response_answers import ResponseInMaking


class ResponseShape:
    """What a chat answer becomes on its way back."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._answering = ResponseInMaking(asked)

    def whole(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._answering.whole(answer)

    async def events(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Server-sent events of chat as those of a response; comments stay as they are."""
        for event in _sse(self._answering.begin()):
            yield event
        is_failed, buffer = False, b""
        async for data in chunks:
            *blocks, buffer = (buffer + data).split(b"\n\n")
            for block in blocks:
                if block.startswith(b":"):
                    yield block + b"\n\n"
                elif block.startswith(b"data:") and (text := block[5:].strip()) != b"[DONE]":
                    chunk = json.loads(text)
                    is_failed = is_failed or "error" in chunk
                    for event in _sse(self._answering.take(chunk)):
                        yield event
        if not is_failed:
            for event in _sse(self._answering.end()):
                yield event


async def respond(request: Request) -> Response:
    """Raises EngineError and NotFoundError for what can't be answered."""
    asked = await forwarding.json_of(request)
    chat = response_requests.as_chat(asked)
    sent = await forwarding.errand(request, "/v1/chat/completions", chat, bodies.CHAT_FIELDS)
    return await forwarding.passed_on(request, sent, ResponseShape(asked))


def _sse(events: Iterable[Mapping[str, Any]]) -> Iterable[bytes]:
    return (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
