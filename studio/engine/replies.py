"""OpenAI's shapes of answers: whole and in chunks, each choice with a field `studio` that says how it was made.

Knows events, not how they came about.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.engine.protocol import Event, GenerationRequest, TokenLogprob, Usage


@dataclass
class Choice:
    """What one answer has become so far."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    facts: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        self.text += event.text
        self.logprobs += event.logprobs
        if event.finish_reason:
            self.finish_reason, self.usage = event.finish_reason, event.usage or self.usage
            self.facts = dict(event.facts or {})


class Reply:
    """The answer to one request, whole (`body`) or as it comes (`chunk`)."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._is_chat = request.is_chat
        prompts = 1 if request.is_chat else len(request.prompts)
        self.choices = [Choice() for _ in range(prompts * request.n)]
        prefix, name = ("chatcmpl", "chat.completion") if self._is_chat else ("cmpl", "text_completion")
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": name, "created": int(time.time()), "model": request.model}

    def take(self, event: Event) -> None:
        self.choices[event.index].take(event)

    @property
    def is_complete(self) -> bool:
        return all(choice.finish_reason for choice in self.choices)

    @property
    def usage(self) -> Usage:
        """Each prompt counts once, however many answers it gets."""
        asked = [choice.usage for choice in self.choices[:: self._request.n]]
        written = sum(choice.usage.completion_tokens for choice in self.choices)
        return Usage(sum(usage.prompt_tokens for usage in asked), written)

    def body(self) -> dict[str, Any]:
        return {**self._head, "choices": [self._whole(i, choice) for i, choice in enumerate(self.choices)], "usage": self.usage.as_json()}

    def first_chunks(self) -> Iterator[dict[str, Any]]:
        """Chat says who speaks before it says anything."""
        if self._is_chat:
            for index in range(len(self.choices)):
                yield self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None})

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """What `event` adds; the end of an answer is a chunk of its own, as in OpenAI's streams."""
        offset = len(self.choices[event.index].text)
        self.take(event)
        if event.text or event.logprobs:
            yield self._chunk(self._delta(event, offset))
        if event.finish_reason:
            empty: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
            end = {"index": event.index, **empty, "logprobs": None, "finish_reason": event.finish_reason}
            yield self._chunk({**end, "studio": self.choices[event.index].facts})

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._chunk(None), "usage": self.usage.as_json()}

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        chunk = {**self._head, "object": name, "choices": [] if choice is None else [choice]}
        return {**chunk, "usage": None} if self._request.include_usage else chunk

    def _delta(self, event: Event, offset: int) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": {"content": event.text}} if self._is_chat else {"text": event.text}
        return {"index": event.index, **content, "logprobs": self._logprobs(event.logprobs, offset), "finish_reason": None}

    def _whole(self, index: int, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        content: dict[str, Any] = {"message": message} if self._is_chat else {"text": choice.text}
        said = {"index": index, **content, "logprobs": self._logprobs(choice.logprobs, 0), "finish_reason": choice.finish_reason}
        return {**said, "studio": choice.facts}

    def _logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if self._request.top_logprobs is None or not entries:
            return None
        return chat_logprobs(entries) if self._is_chat else completion_logprobs(entries, offset)


def chat_logprobs(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    content = [{**_token(entry.token, entry.logprob), "top_logprobs": [_token(*pair) for pair in entry.top]} for entry in entries]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Iterable[TokenLogprob], offset: int) -> dict[str, Any]:
    """The older shape; `offset` is where the first token starts in the answer's text."""
    entries = list(entries)
    texts = [entry.token.decode("utf-8", "replace") for entry in entries]
    offsets = [offset + sum(len(text) for text in texts[:i]) for i in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{token.decode("utf-8", "replace"): value for token, value in entry.top} for entry in entries],
        "text_offset": offsets,
    }


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
