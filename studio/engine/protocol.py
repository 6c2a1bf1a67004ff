"""What is asked of an engine and what comes back, as plain values.

Knows no torch, no HTTP and no names: a base is a folder, an adapter is a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from studio.engine.shapes import AdapterBody, ContestantBody, ErrorBody, ErrorDetailBody, FolderBody, StudioField, UsageBody
from studio.errors import EngineError
from studio.types import GenerationParams, Message

QUANTIZATIONS = ("", "int8", "nf4")  # of a base in memory; "": 16 bit, or as stored
LANES = ("chat", "batch")  # somebody waits, or a job works through a list

Lane = Literal["chat", "batch"]


class BaseFolder(Protocol):
    """A base model: its name for people and its folder. `studio.catalogue.models.ModelRef` is one."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class ModelFolder:
    """A base model as a request names it. `quantization`: how it is held in memory, one of QUANTIZATIONS."""

    name: str
    path: Path
    quantization: str = ""


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
    quantization: str = ""  # of our own base, see QUANTIZATIONS

    def studio_field(self) -> StudioField | None:
        """The `studio` field of a request to our own engine; None for another server."""
        if self.url or self.base is None:
            return None
        adapter: AdapterBody | None = None
        if self.adapter:
            adapter = {"name": self.adapter.name, "path": str(self.adapter.path), "sha256": self.adapter.sha256}
        base: FolderBody = {"name": self.base.name, "path": str(self.base.path)}
        if self.quantization:
            base["quantization"] = self.quantization
        return {"base": base, "adapter": adapter, "chat_template": self.chat_template}

    def as_json(self) -> ContestantBody:
        """Plain values that a job can keep."""
        return {"name": self.name, "url": self.url, "model": self.model, "studio": self.studio_field()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Contestant:
        """What `as_json` gave."""
        if value.get("studio") is None:
            return cls(value["name"], url=value["url"], model=value["model"])
        base, adapter, template = read_folders(value["studio"])
        return cls(value["name"], base, adapter, chat_template=template, quantization=base.quantization)


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like.

    `source` is the text of a JSON schema, of a GBNF (or Lark) grammar, a regular expression, or our own Lark grammar of calls.
    """

    kind: Literal["json_schema", "gbnf", "regex", "calls"]
    source: str
    room: int = 0  # with no more tokens left than these, see that the text comes to its end within them; 0: never
    steps: tuple[str, ...] = ()  # what one token may begin: further properties
    again: tuple[str, ...] = ()  # what may follow a text that could end: about the shortest of each


@dataclass(frozen=True)
class Speculation:
    """Several tokens are drafted and checked at once: by `assistant`, a smaller model, or from the prompt itself (None)."""

    assistant: ModelFolder | None = None


@dataclass(frozen=True)
class Ending:
    """Where an answer may end, beyond its stop texts and the model's own end."""

    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0  # before which it ends in no way
    ignore_eos: bool = False  # the model's own end is none


@dataclass(frozen=True)
class Tools:
    """What the model may call. `definitions` are as the client gave them; a template gets them like that.

    `choice`: "required" where the answer must be a call of one of `names`, "auto" where it may be.
    """

    definitions: tuple[dict[str, Any], ...]
    names: tuple[str, ...]  # that may be called
    choice: Literal["auto", "required"] = "auto"
    is_named: bool = False  # the caller chose the function
    is_parallel: bool = True  # several calls in one answer
    as_instruction: bool = False  # where the template has no place for tools, they are told as plain text

    @property
    def is_forced(self) -> bool:
        return self.choice == "required"

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The schema of the arguments of this function."""
        found = next(tool["function"] for tool in self.definitions if tool["function"]["name"] == name)
        schema: Mapping[str, Any] = found.get("parameters") or {"type": "object", "properties": {}}
        return schema


@dataclass(frozen=True)
class GenerationRequest:
    """One checked request. Chat has `messages`; a text completion has `prompts` (texts, or token ids as they are)."""

    model: str  # echoed in the answer
    base: ModelFolder
    params: GenerationParams
    adapter: AdapterRef | None = None
    chat_template: str | None = None
    messages: tuple[Message, ...] = ()
    tools: Tools | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()
    n: int = 1
    top_logprobs: int | None = None  # None: no logprobs; 0: the chosen tokens only
    grammar: Grammar | None = None
    ending: Ending = field(default_factory=Ending)
    is_streaming: bool = False
    include_usage: bool = False
    has_limit: bool = True  # the caller named one; else a schema may give it
    lane: Lane = "chat"
    speculation: Speculation | None = None
    goes_on: bool = False  # the last message is an answer to be continued
    echoes: bool = False  # the answer begins with the prompt
    writes: bool = True  # False: an echo alone
    is_embedding: bool = False  # the prompts are texts whose vectors are wanted; nothing is written
    in_base64: bool = False  # these vectors

    @property
    def is_chat(self) -> bool:
        return not self.prompts


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    def as_json(self) -> UsageBody:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural log-probability before temperature, top_p and grammar; `top` are the likeliest ones."""

    token: bytes
    logprob: float | None  # None of the first token of a prompt
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class CallDelta:
    """More of the call number `index` of an answer: first its `id` and `name`, then its `arguments` as JSON, piece by piece."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Event:
    """What happened to answer `index`: more text or more of its calls; its end, with `finish_reason`, `usage` and `facts` of its
    making; or an `error`."""

    index: int = 0
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    error: EngineError | None = None
    facts: Mapping[str, Any] | None = None
    vectors: tuple[str, ...] = ()  # of an embedding's texts in their order, each as base64 of float32
    calls: tuple[CallDelta, ...] = ()


FIX_HEADER = "studio-fix"  # of a request that reads the fix of an error by itself


def bad_request(message: str, fix: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400) -> EngineError:
    """An error the caller can mend, in OpenAI's terms."""
    return EngineError(message, fix, status=status, code=code, param=param)


def error_body(error: EngineError, *, with_fix: bool = False) -> ErrorBody:
    """OpenAI's shape of an error. `with_fix` adds the fix by itself, for our own client; the message ends with it in any case."""
    usual = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(error.status, usual)
    body: ErrorDetailBody = {"message": str(error), "type": kind, "param": error.details.get("param"), "code": error.code}
    if with_fix and error.fix:
        body["fix"] = error.fix
    if "job" in error.details:
        body["job"] = error.details["job"]
    return {"error": body}


def read_folders(field: Mapping[str, Any] | None) -> tuple[ModelFolder, AdapterRef | None, str | None]:
    """Base, adapter and chat template from a `studio` field. Raises EngineError 400 when it is not one."""
    try:
        if field is None:
            raise KeyError("studio")
        base = folder_of(field["base"])
        adapter = field.get("adapter")
        ref = adapter and AdapterRef(str(adapter["name"]), Path(str(adapter["path"])), str(adapter.get("sha256") or ""))
        template = field.get("chat_template")
    except (KeyError, TypeError, AttributeError) as exc:
        raise bad_request(
            f"The request does not say which model folder answers (studio field: {exc}).",
            "Send it to the studio's own /v1, which adds it.",
            param="studio",
        ) from None
    if template is not None and not isinstance(template, str):
        raise bad_request("studio.chat_template is no text.", "Send the template's text.", param="studio.chat_template")
    return base, ref or None, template


def folder_of(value: Mapping[str, Any]) -> ModelFolder:
    quantization = str(value.get("quantization") or "")
    if quantization not in QUANTIZATIONS:
        raise bad_request(
            f"studio.base.quantization is {quantization!r}.", f"Choose one of {', '.join(QUANTIZATIONS[1:])}.", param="studio.base"
        )
    return ModelFolder(str(value["name"]), Path(str(value["path"])), quantization)
