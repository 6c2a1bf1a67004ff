"""What is asked of an engine and what comes back: the values, and the reading of OpenAI request bodies.

Knows no torch, no HTTP and no names: a base is a folder, an adapter is a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.errors import EngineError
from studio.types import GenerationParams, Message

COMPLETION_DEFAULT_TOKENS = 16  # OpenAI's default of /v1/completions
MAX_ANSWERS = 64  # answers of one request: prompts x n
MAX_TOP_LOGPROBS = 20


class BaseFolder(Protocol):
    """A base model: its name for people and its folder. `studio.catalogue.models.ModelRef` is one."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class ModelFolder:
    """A base model as a request names it."""

    name: str
    path: Path


class AdapterRef(NamedTuple):
    """An adapter's folder; `sha256` of its weights, or "" where nobody computed it."""

    name: str
    path: Path
    sha256: str = ""


@dataclass(frozen=True)
class Contestant:
    """Who answers: a base, a base with an adapter, or `model` at another server's `url`."""

    name: str  # as asked: "base", "router", "starter:router", "http://host/v1#model"
    base: BaseFolder | None = None
    adapter: AdapterRef | None = None
    url: str = ""
    model: str = ""
    chat_template: str | None = None  # instead of the adapter's or the base's own

    def studio_field(self) -> dict[str, Any] | None:
        """The `studio` field of a request to our own engine; None for another server."""
        if self.url or self.base is None:
            return None
        adapter = self.adapter and {"name": self.adapter.name, "path": str(self.adapter.path), "sha256": self.adapter.sha256}
        return {"base": {"name": self.base.name, "path": str(self.base.path)}, "adapter": adapter, "chat_template": self.chat_template}

    def as_json(self) -> dict[str, Any]:
        """Plain values that a job can keep."""
        return {"name": self.name, "url": self.url, "model": self.model, "studio": self.studio_field()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Contestant:
        """What `as_json` gave."""
        if value.get("studio") is None:
            return cls(value["name"], url=value["url"], model=value["model"])
        base, adapter, template = read_folders(value["studio"])
        return cls(value["name"], base, adapter, chat_template=template)


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; `source` is the text of a JSON schema or of a GBNF grammar."""

    kind: Literal["json_schema", "gbnf"]
    source: str


@dataclass(frozen=True)
class GenerationRequest:
    """One checked request. Chat has `messages`; a text completion has `prompts` (texts, or token ids as they are)."""

    model: str  # echoed in the answer
    base: ModelFolder
    params: GenerationParams
    adapter: AdapterRef | None = None
    chat_template: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    n: int = 1
    top_logprobs: int | None = None  # None: no logprobs; 0: the chosen tokens only
    grammar: Grammar | None = None
    is_streaming: bool = False
    include_usage: bool = False

    @property
    def is_chat(self) -> bool:
        return not self.prompts


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability before temperature, top_p and grammar; `top` are the likeliest ones."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """What happened to answer `index`: more text; its end, with `finish_reason` and `usage`; or an `error`."""

    index: int = 0
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    error: EngineError | None = None


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400) -> EngineError:
    """An error the caller can mend, in OpenAI's terms."""
    return EngineError(message, status=status, code=code, param=param)


def error_body(error: EngineError) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    kinds = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": str(error), "type": kind, "param": error.details.get("param"), "code": error.code}}


class _Body(BaseModel):
    """Fields that both routes share. Unknown fields are ignored, as OpenAI's servers and SDKs expect of each other."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=5)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    max_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    studio: dict[str, Any] | None = None


BodyT = TypeVar("BodyT", bound=_Body)


class _ChatBody(_Body):
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)


class _CompletionBody(_Body):
    prompt: str | list[int] | list[str] | list[list[int]] = ""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)


# fields that would change the answer if they were honoured, and their harmless values
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
}


def parse_chat(body: Any) -> GenerationRequest:
    """Check a body of /v1/chat/completions. Raises EngineError 400 naming the field."""
    checked = _validate(_ChatBody, body)
    if not checked.logprobs and checked.top_logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return GenerationRequest(
        **_shared(checked, checked.max_completion_tokens or checked.max_tokens, None),
        messages=tuple(_message(number, message) for number, message in enumerate(checked.messages)),
        tools=tuple(checked.tools or ()),
        top_logprobs=(checked.top_logprobs or 0) if checked.logprobs else None,
    )


def parse_completion(body: Any) -> GenerationRequest:
    """Check a body of /v1/completions. An empty prompt starts from BOS. Raises EngineError 400 naming the field."""
    checked = _validate(_CompletionBody, body)
    prompts = _prompts(checked.prompt)
    request = GenerationRequest(
        **_shared(checked, checked.max_tokens, COMPLETION_DEFAULT_TOKENS),
        prompts=prompts,
        top_logprobs=checked.logprobs,
    )
    if len(prompts) * request.n > MAX_ANSWERS:
        raise bad_request(f"{len(prompts)} prompts x n={request.n} are more than {MAX_ANSWERS} answers. Send them in parts.", param="n")
    return request


def _validate(kind: type[BodyT], body: Any) -> BodyT:
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_json")
    for name, harmless in _UNSUPPORTED.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise bad_request(f"{name} is not supported here. Leave it out.", param=name, code="unsupported_parameter")
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        error = exc.errors()[0]
        place = ".".join(str(part) for part in error["loc"])
        raise bad_request(f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}.", param=place) from None


def _shared(body: _Body, limit: int | None, default_limit: int | None) -> dict[str, Any]:
    base, adapter, template = read_folders(body.studio)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    highest = next(m.le for m in GenerationParams.model_fields["max_new_tokens"].metadata if hasattr(m, "le"))
    params = GenerationParams(
        max_new_tokens=min(limit or default_limit or highest, highest),  # without a limit the answer may fill the context
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        seed=body.seed,
        stop=tuple(text for text in stop if text),
    )
    return {
        "model": body.model or base.name,
        "base": base,
        "adapter": adapter,
        "chat_template": template,
        "params": params,
        "n": body.n or 1,
        "grammar": _grammar(body),
        "is_streaming": bool(body.stream),
        "include_usage": bool((body.stream_options or {}).get("include_usage")),
    }


def read_folders(field: Mapping[str, Any] | None) -> tuple[ModelFolder, AdapterRef | None, str | None]:
    """Base, adapter and chat template from a `studio` field. Raises EngineError 400 when it is not one."""
    try:
        if field is None:
            raise KeyError("studio")
        base = ModelFolder(str(field["base"]["name"]), Path(str(field["base"]["path"])))
        adapter = field.get("adapter")
        ref = adapter and AdapterRef(str(adapter["name"]), Path(str(adapter["path"])), str(adapter.get("sha256") or ""))
        template = field.get("chat_template")
    except (KeyError, TypeError, AttributeError) as exc:
        raise bad_request(
            f"The request does not say which model folder answers (studio field: {exc}). Send it to the studio's own /v1, which adds it.",
            param="studio",
        ) from None
    if template is not None and not isinstance(template, str):
        raise bad_request("studio.chat_template must be a text.", param="studio.chat_template")
    return base, ref or None, template


def _grammar(body: _Body) -> Grammar | None:
    """`response_format` or `grammar`, at most one of them."""
    found = _response_format(body.response_format) if body.response_format else None
    if body.grammar:
        if found:
            raise bad_request("Give either response_format or grammar, not both.", param="grammar")
        return Grammar("gbnf", body.grammar)
    return found


def _response_format(value: Mapping[str, Any]) -> Grammar | None:
    kind = value.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":  # llama.cpp's server takes a schema here too
        schema = value.get("schema", {"type": "object"})
    elif kind == "json_schema":
        holder = value.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, Mapping) else None
    else:
        raise bad_request(f"response_format.type is {kind!r}; it must be text, json_object or json_schema.", param="response_format")
    if not isinstance(schema, Mapping):
        raise bad_request("response_format.json_schema.schema must be a JSON schema (an object).", param="response_format")
    return Grammar("json_schema", json.dumps(schema))


def _prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        return ("",)
    if isinstance(prompt[0], int):
        return (tuple(prompt),)
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)


def _message(number: int, value: Mapping[str, Any]) -> Message:
    """One chat message; text parts are joined, other parts (images, audio) are refused."""
    place = f"messages.{number}"
    content = value.get("content")
    if isinstance(content, list):
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
            raise bad_request(f"{place}.content has a part that is no text. Only text can be read here.", param=f"{place}.content")
        content = "".join(str(part.get("text", "")) for part in content)
    role = "system" if value.get("role") == "developer" else value.get("role")
    fields = {"role": role, "content": content or "", "tool_calls": value.get("tool_calls"), "name": value.get("name")}
    try:
        return Message.model_validate(fields)
    except ValidationError as exc:
        error = exc.errors()[0]
        where = f"{place}.{'.'.join(str(part) for part in error['loc'])}"
        raise bad_request(f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}.", param=where) from None
