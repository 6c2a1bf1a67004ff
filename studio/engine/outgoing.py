"""Bodies of the requests that we send, to our own engine and to any server of the OpenAI protocol. Knows no HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import httpx

from studio.engine.protocol import Contestant, Grammar
from studio.types import GenerationParams, Message

PLAINEST = 2  # the last form in which a schema is asked of another server: not at all

# what some servers refuse and an answer can do without; the first one they take under another name
SPARABLE = (
    *("max_tokens", "stream_options", "temperature", "seed", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
RENAMED = {"max_tokens": "max_completion_tokens"}  # OpenAI's own reasoning models
REFUSES = re.compile(r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra|not permitted|not allowed", re.IGNORECASE)

Messages = Sequence[Message | Mapping[str, Any]]


def is_under(url: str, start: str) -> bool:
    mine, theirs = httpx.URL(url), httpx.URL(start)
    same = (mine.scheme, mine.host, mine.port) == (theirs.scheme, theirs.host, theirs.port)
    return same and (mine.path.rstrip("/") + "/").startswith(theirs.path.rstrip("/") + "/")


def plainer(body: dict[str, Any], form: int) -> dict[str, Any]:
    """The same request for a server that refuses a schema: as an object with a schema (1), then without any (PLAINEST)."""
    given = body.get("response_format")
    if form == 0 or not given:
        return body
    rest = {name: value for name, value in body.items() if name != "response_format"}
    return rest if form == PLAINEST else {**rest, "response_format": {"type": "json_object", "schema": given["json_schema"]["schema"]}}


def refused_field(body: Mapping[str, Any], said: str) -> str:
    """The field of `body` that a server's words refuse and that can be spared; "" where they mean something else."""
    if not REFUSES.search(said):
        return ""
    named = (name for name in SPARABLE if name in body and re.search(rf"\b{name}\b", said))
    return next((name for name in named if name not in RENAMED or RENAMED[name] in said), "")


def sparing(body: dict[str, Any], refused: Collection[str]) -> dict[str, Any]:
    """`body` for a server that has refused these fields before."""
    return {RENAMED.get(name, name) if name in refused else name: body[name] for name in body if name not in refused or name in RENAMED}


def common(contestant: Contestant, params: GenerationParams, grammar: Grammar | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": contestant.model or contestant.name,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
    }
    if params.top_p < 1:  # text-generation-inference refuses 1.0, which is everybody's default
        body["top_p"] = params.top_p
    if grammar is not None and not contestant.url and "max_new_tokens" not in params.model_fields_set:
        del body["max_tokens"]  # the schema says how long it may get
    optional = {"top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop"}
    set_fields = params.model_dump(include=optional, exclude_defaults=True)
    body |= {name: list(value) if name == "stop" else value for name, value in set_fields.items()}
    if grammar is not None and grammar.kind in ("gbnf", "regex"):
        body["grammar" if grammar.kind == "gbnf" else "regex"] = grammar.source
    elif grammar is not None:
        schema = {"name": "answer", "schema": json.loads(grammar.source), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def plain(messages: Messages) -> list[dict[str, Any]]:
    return [_plain(m.model_dump(exclude={"train"}) if isinstance(m, Message) else m) for m in messages]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty keys; reasoning under the name that servers know."""
    found = {key: value for key, value in message.items() if value is not None}
    if "reasoning" in found:
        found["reasoning_content"] = found.pop("reasoning")
    return found
