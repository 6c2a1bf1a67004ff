"""Reading OpenAI request bodies: every field checked, every refusal naming it.

Knows no torch, no HTTP and no names; what a request becomes is in studio.engine.protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from studio.engine import body_fields
from studio.engine.protocol import Ending, GenerationRequest, Grammar, Speculation, bad_request, folder_of, read_folders
from studio.engine.tool_fields import read_tools
from studio.types import GenerationParams, Message

COMPLETION_DEFAULT_TOKENS = 16  # OpenAI's default of /v1/completions
CORRECT = "Correct that field."
MAX_ANSWERS = 64  # answers of one request: prompts x n
MAX_TOP_LOGPROBS = 20
MAX_STOP_IDS = 1024
ROLES = {"developer": "system", "function": "tool"}  # names that OpenAI gave roles before and after ours
TEXT_PARTS = ("text", "input_text", "output_text")


class LenientBody(BaseModel):
    """Any body: what becomes of fields that it does not know is said elsewhere."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    studio: dict[str, Any] | None = None


class _Body(LenientBody):
    """Fields that both routes share. What becomes of all others is in studio.engine.body_fields."""

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=5)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=MAX_STOP_IDS)
    min_tokens: int | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    max_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    regex: str | None = None
    speculation: Literal["prompt_lookup", "assistant"] | None = None


BodyT = TypeVar("BodyT", bound=LenientBody)


class _ChatBody(_Body):
    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    tools_as_instruction: bool | None = None  # told as plain text where the chat template has no place for them
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    continue_final_message: bool | None = None  # as vLLM calls it


class _CompletionBody(_Body):
    prompt: str | list[int] | list[str] | list[list[int]] = ""
    max_tokens: int | None = Field(default=None, ge=0)  # 0 with echo only
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)


CHAT_FIELDS = frozenset(_ChatBody.model_fields) | {"echo"}
COMPLETION_FIELDS = frozenset(_CompletionBody.model_fields)


def parse_chat(body: Any) -> GenerationRequest:
    """Check a body of /v1/chat/completions. Raises EngineError 400 naming the field."""
    if isinstance(body, dict) and body.get("echo") not in body_fields.NOTHING:
        said = "echo is not supported here."
        raise bad_request(said, "Leave it out, or ask /v1/completions.", param="echo", code="unsupported_parameter")
    checked = settled_body(_ChatBody, body)
    if not checked.logprobs and checked.top_logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "Set logprobs to true.", param="top_logprobs")
    if checked.continue_final_message and checked.messages[-1].get("role") != "assistant":
        raise bad_request(
            "continue_final_message needs an assistant's message at the end.",
            "Add the beginning of the answer as the last message.",
            param="continue_final_message",
        )
    tools = read_tools(checked.tools, checked.tool_choice, checked.parallel_tool_calls, checked.tools_as_instruction)
    if tools is not None:
        _check_beside_tools(checked)
    return GenerationRequest(
        goes_on=bool(checked.continue_final_message),
        **_shared(checked, checked.max_completion_tokens or checked.max_tokens, None),
        messages=tuple(_message(number, message) for number, message in enumerate(checked.messages)),
        tools=tools,
        top_logprobs=(checked.top_logprobs or 0) if checked.logprobs else None,
    )


def _check_beside_tools(body: _ChatBody) -> None:
    """What can't be kept to where the answer may be a call. Raises EngineError 400."""
    given = {
        "response_format": (body.response_format or {}).get("type", "text") != "text",
        "grammar": body.grammar,
        "regex": body.regex,
        "speculation": body.speculation,
        "continue_final_message": body.continue_final_message,
        "ignore_eos": body.ignore_eos,
        "min_tokens": body.min_tokens,
    }
    named = next((name for name, value in given.items() if value), None)
    if named is not None:
        said = f"{named} and tools exclude each other: the answer may be a call."
        raise bad_request(said, "Give only one of them, or set tool_choice to none.", param=named)


def parse_completion(body: Any) -> GenerationRequest:
    """Check a body of /v1/completions. An empty prompt starts from BOS. Raises EngineError 400 naming the field."""
    checked = settled_body(_CompletionBody, body)
    prompts = prompts_of(checked.prompt)
    if checked.max_tokens == 0 and not checked.echo:
        raise bad_request("max_tokens: 0 asks for nothing.", "Set it to 1 at least, or echo to true.", param="max_tokens")
    request = GenerationRequest(
        echoes=bool(checked.echo),
        writes=checked.max_tokens != 0,
        **_shared(checked, checked.max_tokens or None, COMPLETION_DEFAULT_TOKENS),
        prompts=prompts,
        top_logprobs=checked.logprobs,
    )
    if len(prompts) * request.n > MAX_ANSWERS:
        raise bad_request(f"{len(prompts)} prompts x n={request.n} are more than {MAX_ANSWERS} answers.", "Send them in parts.", param="n")
    return request


def settled_body(kind: type[BodyT], body: Any) -> BodyT:
    """As `validated`, under the names that are read here."""
    return validated(kind, body_fields.settled(body) if isinstance(body, dict) else body)


def validated(kind: type[BodyT], body: Any) -> BodyT:
    """The fields of `kind` in a body. Raises EngineError 400 naming the one that is wrong."""
    if not isinstance(body, dict):
        raise bad_request("The body is no JSON object.", "Send an object in braces.", code="invalid_json")
    try:
        return kind.model_validate(body)
    except ValidationError as exc:
        error = exc.errors()[0]
        place = ".".join(str(part) for part in error["loc"])
        raise bad_request(f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}.", CORRECT, param=place) from None


def _shared(body: _Body, limit: int | None, default_limit: int | None) -> dict[str, Any]:
    base, adapter, template = read_folders(body.studio)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    highest = next(m.le for m in GenerationParams.model_fields["max_new_tokens"].metadata if hasattr(m, "le"))
    params = GenerationParams(
        max_new_tokens=min(limit or default_limit or highest, highest),  # without a limit the answer may fill the context
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
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
        "grammar": (grammar := _grammar(body)),
        "ending": _ending(body, grammar),
        "has_limit": limit is not None,
        "lane": "batch" if (body.studio or {}).get("lane") == "batch" else "chat",
        "speculation": _speculation(body, params),
        "is_streaming": bool(body.stream),
        "include_usage": bool((body.stream_options or {}).get("include_usage")),
    }


def _ending(body: _Body, grammar: Grammar | None) -> Ending:
    """Where the answer may end; a grammar says that itself."""
    ending = Ending(frozenset(body.stop_token_ids or ()), body.min_tokens or 0, bool(body.ignore_eos))
    held = next((name for name, given in (("min_tokens", ending.min_tokens), ("ignore_eos", ending.ignore_eos)) if given), None)
    if grammar is not None and held:
        raise bad_request(f"{held} and a grammar, schema or regex exclude each other.", "Give only one of them.", param=held)
    return ending


def _speculation(body: _Body, params: GenerationParams) -> Speculation | None:
    """Only the likeliest token can be drafted and checked; a sampled one would not be the same."""
    if body.speculation is None:
        return None
    bends = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
    is_held = body.min_tokens or body.ignore_eos
    if (
        params.temperature != 0
        or bends
        or is_held
        or body.grammar
        or body.regex
        or (body.response_format or {}).get("type", "text") != "text"
    ):
        said = "speculation keeps the answer only at temperature 0 without penalties, grammar, schema, min_tokens or ignore_eos."
        raise bad_request(said, "Leave it out, or set temperature to 0.", param="speculation")
    if body.speculation == "prompt_lookup":
        return Speculation()
    assistant = (body.studio or {}).get("assistant")
    if not isinstance(assistant, Mapping):
        raise bad_request(
            "speculation by an assistant needs assistant_model.", "Name a smaller model of the same family.", param="assistant_model"
        )
    return Speculation(folder_of(assistant))


def _grammar(body: _Body) -> Grammar | None:
    """`response_format`, `grammar` or `regex`, at most one of them."""
    found = _response_format(body.response_format) if body.response_format else None
    if len([form for form in (found, body.grammar, body.regex) if form]) > 1:
        raise bad_request("response_format, grammar and regex exclude each other.", "Give only one of them.", param="grammar")
    if body.regex:
        return Grammar("regex", body.regex)
    return Grammar("gbnf", body.grammar) if body.grammar else found


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
        raise bad_request(f"response_format.type is {kind!r}.", "It must be text, json_object or json_schema.", param="response_format")
    if not isinstance(schema, Mapping):
        raise bad_request(
            "response_format.json_schema.schema is no JSON schema.", "It must be an object in braces.", param="response_format"
        )
    return Grammar("json_schema", json.dumps(schema))


def prompts_of(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    """One text, several, the token ids of one, or those of several."""
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
        content = "".join(_part(f"{place}.content", part) for part in content)
    role = ROLES.get(str(value.get("role")), value.get("role"))
    fields = {name: value.get(name) for name in ("tool_calls", "tool_call_id", "name")}
    fields |= {"role": role, "content": content or "", "reasoning": value.get("reasoning_content") or value.get("reasoning")}
    try:
        return Message.model_validate(fields)
    except ValidationError as exc:
        error = exc.errors()[0]
        where = f"{place}.{'.'.join(str(part) for part in error['loc'])}"
        raise bad_request(f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}.", CORRECT, param=where) from None


def _part(place: str, part: Any) -> str:
    """The text of one part of a content, which some clients send as a plain string."""
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS else None
    if not isinstance(text, str):
        raise bad_request(f"{place} has a part that is no text.", "Only text can be read here.", param=place)
    return text
