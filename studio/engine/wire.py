"""Events and errors of answers as plain JSON, between the engine's server and the process that holds the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.engine.protocol import CallDelta, Event, TokenLogprob, Usage
from studio.errors import EngineError

BYTES = "latin-1"  # a token is bytes, which need not be UTF-8


def event_as_json(event: Event) -> dict[str, Any]:
    """What is set of it."""
    found: dict[str, Any] = {"index": event.index}
    if event.text:
        found["text"] = event.text
    if event.logprobs:
        found["logprobs"] = [_logprob_as_json(one) for one in event.logprobs]
    if event.finish_reason is not None:
        found["finish_reason"] = event.finish_reason
    if event.usage is not None:
        found["usage"] = [event.usage.prompt_tokens, event.usage.completion_tokens]
    if event.facts is not None:
        found["facts"] = dict(event.facts)
    if event.vectors:
        found["vectors"] = list(event.vectors)
    if event.calls:
        found["calls"] = [[one.index, one.id, one.name, one.arguments] for one in event.calls]
    if event.error is not None:
        found["error"] = error_as_json(event.error)
    return found


def read_event(value: Mapping[str, Any]) -> Event:
    """What `event_as_json` gave."""
    return Event(
        value["index"],
        value.get("text", ""),
        tuple(_read_logprob(one) for one in value.get("logprobs", ())),
        value.get("finish_reason"),
        Usage(*value["usage"]) if "usage" in value else None,
        read_error(value["error"]) if "error" in value else None,
        value.get("facts"),
        tuple(value.get("vectors", ())),
        tuple(CallDelta(*one) for one in value.get("calls", ())),
    )


def error_as_json(error: EngineError) -> dict[str, Any]:
    return {"message": error.message, "fix": error.fix, "status": error.status, "code": error.code, "details": error.details}


def read_error(value: Mapping[str, Any]) -> EngineError:
    """What `error_as_json` gave."""
    return EngineError(value["message"], value["fix"], status=value["status"], code=value["code"], **value["details"])


def _logprob_as_json(one: TokenLogprob) -> list[Any]:
    return [one.token.decode(BYTES), one.logprob, [[token.decode(BYTES), value] for token, value in one.top]]


def _read_logprob(value: list[Any]) -> TokenLogprob:
    token, logprob, top = value
    return TokenLogprob(token.encode(BYTES), logprob, tuple((other.encode(BYTES), number) for other, number in top))
