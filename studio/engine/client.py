"""Asks our own engine, or any server of the OpenAI protocol, for answers. Synchronous; no torch, no database."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from studio.engine import outgoing
from studio.engine.outgoing import Messages
from studio.engine.protocol import FIX_HEADER, CallDelta, Contestant, Event, Grammar, Lane, Usage
from studio.errors import EngineError
from studio.records import EngineStatus, PromptPreview
from studio.settings import Settings
from studio.types import GenerationParams

START_S = 120.0  # how long a request waits for an engine that is starting, restarting or full
PAUSE_S = 0.25
ATTEMPTS = 3  # for an engine that dies before the first word
STUMBLES = (502, 503, 504, 529)  # of a service on the net, which is there again soon
STUMBLE_PAUSES_S = (0.5, 2.0)
log = logging.getLogger(__name__)
TIMEOUT = httpx.Timeout(600.0, connect=5.0, pool=60.0)  # a first answer waits for the model to load


@dataclass(frozen=True)
class FinishedAnswer:
    """One whole answer. Token counts are 0 where the server tells none."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)  # of our own engine: first_token_s, tokens_per_s, notes, ...


class EngineClient:
    """A connection to our engine at `url`; contestants with a URL of their own are asked there. Safe to share between threads."""

    def __init__(
        self, url: str, key: str = "", *, start_s: float = START_S, lane: Lane = "chat", api_keys: Sequence[tuple[str, str]] = ()
    ) -> None:
        """`lane`: "batch" for a job that works through a list. `api_keys`: (start of a URL, key) for other servers."""
        self.url = url.rstrip("/")
        self._key = key
        self._lane = lane
        self._api_keys = tuple(api_keys)
        self._plainer: dict[str, int] = {}  # other servers that refused a schema, and the form that they took
        self._refused: dict[tuple[str, str], set[str]] = {}  # and fields that they refused, by URL and model
        self._start_s = start_s
        # our own engine is on loopback, which a proxy of the environment can't reach
        self._own = httpx.Client(timeout=TIMEOUT, trust_env=False)
        self._foreign: httpx.Client | None = None

    @classmethod
    def from_settings(cls, settings: Settings, *, lane: Lane = "chat") -> EngineClient:
        return cls(settings.engine_url, settings.engine_key, lane=lane, api_keys=settings.api_keys)

    def close(self) -> None:
        self._own.close()
        if self._foreign is not None:
            self._foreign.close()

    def chat(
        self, contestant: Contestant, messages: Messages, params: GenerationParams, *, grammar: Grammar | None = None
    ) -> FinishedAnswer:
        """The whole answer to a conversation. Raises EngineError.

        Of our own engine the answer fits `grammar`; other servers may ignore it in silence, so check what they say.
        """
        form = self._plainer.get(contestant.url, 0)
        while True:
            body = {**self._body(contestant, params, grammar), "messages": outgoing.plain(messages)}
            try:
                return self._whole(contestant, "/chat/completions", outgoing.plainer(body, form))
            except EngineError as exc:
                is_refused = contestant.url and grammar and grammar.kind == "json_schema" and exc.status in (400, 422, 500, 501)
                if not is_refused or form == outgoing.PLAINEST:
                    raise
                form += 1
                self._plainer[contestant.url] = form

    def complete(self, contestant: Contestant, prompt: str, params: GenerationParams, *, grammar: Grammar | None = None) -> FinishedAnswer:
        """Plain text going on after `prompt`; nothing starts from BOS. Raises EngineError."""
        return self._whole(contestant, "/completions", {**self._body(contestant, params, grammar), "prompt": prompt})

    def stream(
        self,
        contestant: Contestant,
        messages: Messages,
        params: GenerationParams,
        *,
        grammar: Grammar | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> Iterator[Event]:
        """The answer as it comes, its last event with `finish_reason`. Closing the iterator stops the generation. Raises EngineError.

        `more`: further fields of the request, such as `speculation`, for which `assistant` is the folder of a smaller model.
        """
        further = dict(more or {})
        assistant = further.pop("assistant", None)
        body = {**self._body(contestant, params, grammar), "messages": outgoing.plain(messages), **further}
        if assistant is not None and "studio" in body:
            body["studio"]["assistant"] = assistant
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        for attempt in range(ATTEMPTS):
            is_silent = True
            try:
                for event in self._events(contestant, body):
                    is_silent = False
                    yield event
                return
            except EngineError as exc:
                if exc.code != "engine_gone" or not is_silent or contestant.url or attempt + 1 == ATTEMPTS:
                    raise

    def status(self) -> EngineStatus:
        """What our engine holds and does. Raises EngineError at once when it is not there."""
        return EngineStatus.model_validate(self._ask("GET", "/engine/status", timeout=5.0))

    def unload(self) -> int:
        """Have our engine give its memory back; bytes it held. Waits for running answers for a while. Raises EngineError."""
        return int(self._ask("POST", "/engine/unload", timeout=180.0)["unloaded_bytes"])

    def share(self, job: str, keep_bytes: int, *, renew: bool = False) -> None:
        """Until `resume`, what is loaded anew must leave `keep_bytes` to the job; `renew` goes on as promised. Raises EngineError."""
        self._ask("POST", "/engine/share", timeout=5.0, body={"job": job, "keep_bytes": keep_bytes, "renew": renew})

    def yield_to(self, job: str, keep_bytes: int) -> int:
        """Unload, and until `resume` leave `keep_bytes` to the job. Bytes given back. Raises EngineError."""
        return int(self._ask("POST", "/engine/unload", timeout=180.0, body={"job": job, "keep_bytes": keep_bytes})["unloaded_bytes"])

    def resume(self, job: str) -> None:
        """The job has ended: the engine may take all memory again. Raises EngineError."""
        self._ask("POST", "/engine/resume", timeout=5.0, body={"job": job})

    def prompt(self, contestant: Contestant, messages: Messages, tools: Sequence[dict[str, Any]] = ()) -> PromptPreview:
        """The exact text and token ids that our engine would read. Raises EngineError."""
        body = {"studio": contestant.studio_field(), "messages": outgoing.plain(messages), "model": contestant.name}
        if tools:
            body["tools"] = list(tools)
        return PromptPreview.model_validate(self._ask("POST", "/engine/prompt", timeout=30.0, body=body))

    def _ask(self, method: str, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._own.request(method, self._engine_url() + path, headers=self._headers(None), timeout=timeout, json=body)
        except httpx.HTTPError as exc:
            raise _unreachable(self.url, exc) from None
        if response.status_code >= 400:
            raise _error(response)
        value: dict[str, Any] = response.json()
        return value

    def _whole(self, contestant: Contestant, path: str, body: dict[str, Any]) -> FinishedAnswer:
        started = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                with self._response(contestant, path, body) as response:
                    value = _read(response)
                break
            except EngineError as exc:
                if exc.code != "engine_gone" or contestant.url or attempt + 1 == ATTEMPTS:
                    raise
        choice = (value.get("choices") or [{}])[0]
        text = choice.get("text") if path == "/completions" else (choice.get("message") or {}).get("content")
        usage = _usage(value) or Usage(0, 0)
        seconds = time.monotonic() - started
        finish, facts = choice.get("finish_reason"), {} if contestant.url else choice.get("studio") or {}
        return FinishedAnswer(_text(text), finish, usage.prompt_tokens, usage.completion_tokens, seconds, facts)

    def _events(self, contestant: Contestant, body: dict[str, Any]) -> Iterator[Event]:
        finish_reason, usage, facts = None, None, None
        with self._response(contestant, "/chat/completions", body) as response:
            for chunk in _chunks(response):
                choice = (chunk.get("choices") or [{}])[0]  # the usage chunk has none
                text = _text((choice.get("delta") or {}).get("content"))
                calls = _call_deltas((choice.get("delta") or {}).get("tool_calls"))
                if text or calls:
                    yield Event(text=text, calls=calls)
                finish_reason = choice.get("finish_reason") or finish_reason
                usage = _usage(chunk) or usage
                facts = choice.get("studio") or facts if not contestant.url else None
        if finish_reason is None:
            raise _gone(contestant.url or self.url)
        yield Event(finish_reason=finish_reason, usage=usage, facts=facts)

    @contextmanager
    def _response(self, contestant: Contestant, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        """A response that has begun, 2xx. Waits for our engine to start and for a full queue to drain."""
        client, url = self._target(contestant)
        deadline = time.monotonic() + self._start_s
        refused, stumbles = self._refused.setdefault((contestant.url, contestant.model), set()), 0
        while True:
            pause, problem = PAUSE_S, None
            sent = outgoing.sparing(body, refused) if contestant.url else body
            try:
                response = client.send(client.build_request("POST", url + path, json=sent, headers=self._headers(contestant)), stream=True)
                if response.status_code < 400:
                    break
                problem = _error(response)
                if contestant.url and self._spares(contestant, sent, problem, refused):
                    continue
                pause = float(problem.details.get("retry_after") or PAUSE_S)
                is_passing = problem.status == 429 or problem.code == "engine_stopping" or _is_loading(problem)
                if contestant.url and not is_passing and problem.status in STUMBLES and stumbles < len(STUMBLE_PAUSES_S):
                    pause, is_passing, stumbles = STUMBLE_PAUSES_S[stumbles], True, stumbles + 1
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                problem, is_passing = _unreachable(url, exc), not contestant.url
            except httpx.HTTPError as exc:
                raise _gone(url) from exc
            if not is_passing or time.monotonic() + pause > deadline:
                raise problem
            time.sleep(pause)
        try:
            yield response
        except httpx.HTTPError as exc:
            raise _gone(url) from exc
        finally:
            response.close()

    def _spares(self, contestant: Contestant, sent: dict[str, Any], problem: EngineError, refused: set[str]) -> bool:
        """Whether the server only refused a field that can be left out or has another name there; it is remembered."""
        name = (
            outgoing.refused_field(sent, f"{problem.details.get('param') or ''} {problem.message}") if problem.status in (400, 422) else ""
        )
        if name:
            refused.add(name)
            log.warning("%s does not take %s, so it is asked without.", contestant.url, name)
        return bool(name)

    def _target(self, contestant: Contestant) -> tuple[httpx.Client, str]:
        if not contestant.url:
            return self._own, self._engine_url() + "/v1"
        self._foreign = self._foreign or httpx.Client(timeout=TIMEOUT)
        url = httpx.URL(contestant.url)
        return self._foreign, str(url.copy_with(path="/v1") if url.path in ("", "/") else url).rstrip("/")

    def _engine_url(self) -> str:
        if not self.url:
            raise EngineError("No engine is running.", "Start the studio with `studio up`.", status=503, code="engine_unreachable")
        return self.url

    def _headers(self, contestant: Contestant | None) -> dict[str, str]:
        key = self._key
        if contestant is not None and contestant.url:  # a key goes to the address that it was given for, and nowhere else
            key = next((key for start, key in self._api_keys if outgoing.is_under(contestant.url, start)), "")
        headers = {}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if contestant is None or not contestant.url:
            headers[FIX_HEADER] = "1"
        return headers

    def _body(self, contestant: Contestant, params: GenerationParams, grammar: Grammar | None) -> dict[str, Any]:
        """What every request says. Other servers refuse fields they don't know, so of ours only those that matter."""
        body = outgoing.common(contestant, params, grammar)
        field = contestant.studio_field()
        if field is not None:
            if self._lane == "batch":
                field["lane"] = self._lane
            body["studio"] = field
        return body


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event until [DONE]. Lines end at newlines only: httpx's own would split at U+2028 too."""
    buffer = b""
    for data in response.iter_bytes():
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            text = line[5:].strip()
            if text == b"[DONE]":
                return
            chunk = _json(text)
            if "error" in chunk:
                raise _from_body(chunk, 500)
            yield chunk


def _text(content: Any) -> str:
    """Content is a text, or a list of parts of which some are text."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _call_deltas(found: Any) -> tuple[CallDelta, ...]:
    """More of the answer's calls; what is no call is passed over."""
    deltas = []
    for one in found if isinstance(found, list) else []:
        function = one.get("function") if isinstance(one, dict) else None
        if isinstance(function, dict) and isinstance(one.get("index", 0), int):
            texts = [value if isinstance(value, str) else "" for value in (one.get("id"), function.get("name"), function.get("arguments"))]
            deltas.append(CallDelta(one.get("index", 0), *texts))
    return tuple(deltas)


def _read(response: httpx.Response) -> dict[str, Any]:
    return _json(response.read())


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        fix = "Check that its URL ends in /v1."
        raise EngineError(f"The server answered something else than JSON: {text[:80]!r}.", fix, code="not_openai")
    return value


def _usage(value: Mapping[str, Any]) -> Usage | None:
    usage = value.get("usage")
    if not isinstance(usage, Mapping):
        return None
    return Usage(int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _error(response: httpx.Response) -> EngineError:
    """The error a server answered with, and how long to wait before asking again."""
    try:
        body = json.loads(response.read())
    except (ValueError, httpx.HTTPError):
        body = None
    finally:
        response.close()
    error = _from_body(body, response.status_code)
    after = response.headers.get("retry-after", "")
    if after.isdigit():
        error.details["retry_after"] = int(after)
    return error


# what helps when another server says no more than its status
SERVER_FIXES = {
    300: "Check the address of the server.",
    400: "Change the request as the server says.",
    401: "Check the key of that server.",
    403: "Check the key of that server, and what it may do.",
    404: "Check the address and the model's name.",
    429: "Wait a little, then ask again.",
}
ASK_AGAIN = "Ask again; the log of that server has the details."


def _from_body(body: Any, status: int) -> EngineError:
    """Servers differ: OpenAI nests the error, others say `detail` or `message`."""
    body = body if isinstance(body, dict) else {}
    error = body.get("error")
    holder: Mapping[str, Any] = error if isinstance(error, dict) else body
    message = holder.get("message") or holder.get("detail") or (isinstance(error, str) and error)
    code = holder.get("code")
    fix = str(holder.get("fix") or "")
    said = str(message or f"The server answered with status {status}.")
    return EngineError(
        said.removesuffix(fix).rstrip(),  # our own messages end with their fix
        fix or SERVER_FIXES.get(status) or SERVER_FIXES.get(status // 100 * 100, ASK_AGAIN),
        status=status,
        code=str(code) if code else "engine_error",
        param=holder.get("param"),
        **({"job": holder["job"]} if "job" in holder else {}),
    )


def _is_loading(problem: EngineError) -> bool:
    """llama.cpp's server answers so until its model is in memory."""
    return problem.status == 503 and "loading model" in problem.message.lower()


def _unreachable(url: str, exc: Exception) -> EngineError:
    fix = "It may be starting: ask again in a few seconds, or start the studio with `studio up`."
    return EngineError(f"Nothing answers at {url} ({type(exc).__name__}).", fix, status=503, code="engine_unreachable")


def _gone(url: str) -> EngineError:
    fix = "Ask again: the engine is started anew. If it happens each time, the model may need more memory than there is."
    return EngineError(f"The engine at {url} stopped in the middle of the answer.", fix, status=502, code="engine_gone")
