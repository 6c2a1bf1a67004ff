"""Answers of OpenAI's protocol, whole and in chunks, made of the events of their generation."""

from __future__ import annotations

import base64
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.engine.protocol import CallDelta, Event, GenerationRequest, TokenLogprob, Usage
from studio.engine.shapes import (
    CallBody,
    CallDeltaBody,
    CalledBody,
    ChatChoiceBody,
    ChatChunkChoiceBody,
    ChatCompletionBody,
    ChatLogprobsBody,
    ChosenTokenBody,
    ChunkBody,
    CompletionBody,
    CompletionChoiceBody,
    CompletionChunkChoiceBody,
    CompletionLogprobsBody,
    DeltaBody,
    EmbeddingsBody,
    MessageBody,
    ReplyHead,
    TokenBody,
)  # fmt: skip


@dataclass
class Choice:
    """What one answer has become so far."""

    text: str = ""
    calls: list[CallBody] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    facts: dict[str, Any] = field(default_factory=dict)
    vectors: tuple[str, ...] = ()

    def take(self, event: Event) -> None:
        self.text += event.text
        self.logprobs += event.logprobs
        for delta in event.calls:
            if delta.id:
                self.calls.append({"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}})
            self.calls[delta.index]["function"]["arguments"] += delta.arguments
        if event.finish_reason:
            self.finish_reason, self.usage = event.finish_reason, event.usage or self.usage
            self.facts, self.vectors = dict(event.facts or {}), event.vectors


class Reply:
    """The answer to one request, whole (`body`) or as it comes (`chunk`)."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._is_chat = request.is_chat
        prompts = max(1, len(request.prompts)) if not request.is_embedding else 1  # chat has none of these
        self.choices = [Choice() for _ in range(prompts * request.n)]
        prefix, name = ("chatcmpl", "chat.completion") if self._is_chat else ("cmpl", "text_completion")
        self._head: ReplyHead = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": name,
            "created": int(time.time()),
            "model": request.model,
        }

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

    def body(self) -> ChatCompletionBody | CompletionBody | EmbeddingsBody:
        """The whole answer."""
        if self._request.is_embedding:
            return self._embeddings()
        usage = self.usage.as_json()
        if self._is_chat:
            return {**self._head, "choices": [self._chat_choice(number) for number in range(len(self.choices))], "usage": usage}
        return {**self._head, "choices": [self._completion_choice(number) for number in range(len(self.choices))], "usage": usage}

    def _embeddings(self) -> EmbeddingsBody:
        (choice,) = self.choices
        vectors: Iterable[str | list[float]] = choice.vectors
        if not self._request.in_base64:
            vectors = (list(struct.unpack(f"<{len(packed) // 4}f", packed)) for packed in map(base64.b64decode, choice.vectors))
        return {
            "object": "list",
            "model": self._request.model,
            "data": [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(vectors)],
            "usage": {"prompt_tokens": choice.usage.prompt_tokens, "total_tokens": choice.usage.prompt_tokens},
            "studio": choice.facts,
        }

    def first_chunks(self) -> Iterator[ChunkBody]:
        """Chat says who speaks before it says anything."""
        if not self._is_chat:
            return
        for index in range(len(self.choices)):
            delta: DeltaBody = {"role": "assistant", "content": ""}
            yield self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})

    def chunks(self, event: Event) -> Iterator[ChunkBody]:
        """What `event` adds; the end of an answer is a chunk of its own, as in OpenAI's streams."""
        offset = len(self.choices[event.index].text)
        self.take(event)
        if event.text or event.logprobs or event.calls:
            yield self._chunk(self._grown(event, offset))
        if event.finish_reason:
            yield self._chunk(self._ended(event.index, event.finish_reason))

    def usage_chunk(self) -> ChunkBody:
        return {**self._chunk(None), "usage": self.usage.as_json()}

    def _chunk(self, choice: ChatChunkChoiceBody | CompletionChunkChoiceBody | None) -> ChunkBody:
        name = "chat.completion.chunk" if self._is_chat else "text_completion"
        chunk: ChunkBody = {**self._head, "object": name, "choices": []}
        if choice is not None:
            chunk["choices"].append(choice)
        if self._request.include_usage:
            chunk["usage"] = None
        return chunk

    def _grown(self, event: Event, offset: int) -> ChatChunkChoiceBody | CompletionChunkChoiceBody:
        if self._is_chat:
            delta: DeltaBody = {"content": event.text} if event.text or not event.calls else {}
            if event.calls:
                delta["tool_calls"] = [_call_delta(one) for one in event.calls]
            logprobs = self._chat_logprobs(event.logprobs)
            return {"index": event.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        older = self._completion_logprobs(event.logprobs, offset)
        return {"index": event.index, "text": event.text, "logprobs": older, "finish_reason": None}

    def _ended(self, index: int, reason: str) -> ChatChunkChoiceBody | CompletionChunkChoiceBody:
        facts = self.choices[index].facts
        if self._is_chat:
            return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason, "studio": facts}
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason, "studio": facts}

    def _chat_choice(self, index: int) -> ChatChoiceBody:
        choice = self.choices[index]
        message: MessageBody = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        return {
            "index": index,
            "message": message,
            "logprobs": self._chat_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
            "studio": choice.facts,
        }

    def _completion_choice(self, index: int) -> CompletionChoiceBody:
        choice = self.choices[index]
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self._completion_logprobs(choice.logprobs, 0),
            "finish_reason": choice.finish_reason,
            "studio": choice.facts,
        }

    def _chat_logprobs(self, entries: Sequence[TokenLogprob]) -> ChatLogprobsBody | None:
        if self._request.top_logprobs is None or not entries:
            return None
        return chat_logprobs(entries)

    def _completion_logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> CompletionLogprobsBody | None:
        if self._request.top_logprobs is None or not entries:
            return None
        return completion_logprobs(entries, offset)


def _call_delta(delta: CallDelta) -> CallDeltaBody:
    if delta.id:
        named: CalledBody = {"name": delta.name, "arguments": delta.arguments}
        return {"index": delta.index, "id": delta.id, "type": "function", "function": named}
    return {"index": delta.index, "function": {"arguments": delta.arguments}}


def chat_logprobs(entries: Iterable[TokenLogprob]) -> ChatLogprobsBody:
    content: list[ChosenTokenBody] = [
        {**_token(entry.token, entry.logprob or 0.0), "top_logprobs": [_token(*pair) for pair in entry.top]} for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Iterable[TokenLogprob], offset: int) -> CompletionLogprobsBody:
    """The older shape; `offset` is where the first token starts in the answer's text."""
    entries = list(entries)
    texts = [entry.token.decode("utf-8", "replace") for entry in entries]
    offsets = [offset + sum(len(text) for text in texts[:i]) for i in range(len(texts))]
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_top(entry) for entry in entries],
        "text_offset": offsets,
    }


def _top(entry: TokenLogprob) -> dict[str, float] | None:
    """By text, of equal texts (parts of characters) the likeliest; a prompt's first token has no probability and so no rivals."""
    if entry.logprob is None:
        return None
    return {token.decode("utf-8", "replace"): value for token, value in reversed(entry.top)}


def _token(token: bytes, logprob: float) -> TokenBody:
    return {"token": token.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(token)}
