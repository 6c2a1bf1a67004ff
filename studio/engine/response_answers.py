"""Answers of chat in the shapes of /v1/responses: whole, and as events in OpenAI's order with their sequence numbers.

Knows no HTTP and no generation.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

Event = dict[str, Any]
STATUSES = {"length": "incomplete"}  # by the reason why an answer ended; else it is completed


class ResponseInMaking:
    """The response to one request: what is known of it so far."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """`asked`: the request's body as it came."""
        text = asked.get("text") or {}
        self._head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": asked.get("metadata") or {},
            "model": asked.get("model"),
            "output": [],
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if asked.get("temperature") is None else asked["temperature"],
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "top_logprobs": asked.get("top_logprobs") or 0,
            "top_p": 1.0 if asked.get("top_p") is None else asked["top_p"],
            "truncation": "disabled",
            "usage": None,
            "user": asked.get("user"),
        }
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._calls: dict[int, int] = {}  # a call's number in chat -> that of its item
        self._usage: Mapping[str, Any] = {}
        self._reason = "stop"
        self._facts: Mapping[str, Any] = {}

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The response to a whole answer of chat."""
        (choice,) = answer["choices"]
        message = choice["message"]
        self._take_end(choice, answer)
        calls = message.get("tool_calls") or []
        if message.get("content") or not calls:
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            self._items.append(_message(message.get("content") or "", logprobs))
        self._items += [_call(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
        return self._ended()

    # as it comes

    def begin(self) -> Iterator[Event]:
        yield self._event("response.created", response=dict(self._head))
        yield self._event("response.in_progress", response=dict(self._head))

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """What a chunk of chat adds, or the end where it is an error."""
        if "error" in chunk:
            yield from self.fail(chunk["error"])
            return
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content"):
                yield from self._grow_text(delta["content"], (choice.get("logprobs") or {}).get("content") or [])
            for call in delta.get("tool_calls") or ():
                yield from self._grow_call(call)
            self._take_end(choice, {})
        self._take_end({}, chunk)

    def end(self) -> Iterator[Event]:
        if not self._items:  # nothing was said: an empty message, as a whole answer has it
            yield from self._grow_text("", [])
        yield from self._close()
        response = self._ended()
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, error: Mapping[str, Any]) -> Iterator[Event]:
        told = {"code": error.get("code") or "server_error", "message": error.get("message")}
        yield self._event("response.failed", response={**self._head, "status": "failed", "error": told, "output": list(self._items)})

    def _take_end(self, choice: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        self._reason = choice.get("finish_reason") or self._reason
        self._facts = choice.get("studio") or self._facts
        self._usage = answer.get("usage") or self._usage

    def _ended(self) -> dict[str, Any]:
        status = STATUSES.get(self._reason, "completed")
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        if details:
            self._items[-1]["status"] = status
        usage = {
            "input_tokens": self._usage.get("prompt_tokens", 0),
            "input_tokens_details": {"cached_tokens": self._facts.get("reused_tokens", 0), "cache_write_tokens": 0},
            "output_tokens": self._usage.get("completion_tokens", 0),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._usage.get("total_tokens", 0),
        }
        ended = {"status": status, "incomplete_details": details, "output": self._items, "usage": usage, "studio": dict(self._facts)}
        return {**self._head, **ended}

    def _grow_text(self, text: str, logprobs: list[Any]) -> Iterator[Event]:
        if not self._items or self._items[-1]["type"] != "message":
            yield from self._close()
            item = _message("", [])
            self._items.append(item)
            place = self._place()
            opened = {**item, "status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=place["output_index"], item=opened)
            yield self._event("response.content_part.added", **place, content_index=0, part=dict(item["content"][0]))
        part = self._items[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            yield self._event("response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=logprobs)

    def _grow_call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        function = call.get("function") or {}
        if call["index"] not in self._calls:
            yield from self._close()
            item = _call(call.get("id") or f"call_{secrets.token_hex(12)}", function.get("name") or "", "")
            self._calls[call["index"]] = len(self._items)
            self._items.append(item)
            opened = {**item, "status": "in_progress"}
            yield self._event("response.output_item.added", output_index=self._place()["output_index"], item=opened)
        if function.get("arguments"):
            number = self._calls[call["index"]]
            self._items[number]["arguments"] += function["arguments"]
            place = {"item_id": self._items[number]["id"], "output_index": number}
            yield self._event("response.function_call_arguments.delta", **place, delta=function["arguments"])

    def _close(self) -> Iterator[Event]:
        """The item that grew is whole."""
        if not self._items:
            return
        item, place = self._items[-1], self._place()
        if item["type"] == "message":
            part = dict(item["content"][0])
            yield self._event("response.output_text.done", **place, content_index=0, text=part["text"], logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **place, content_index=0, part=part)
        else:
            told = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **place, **told)
        yield self._event("response.output_item.done", output_index=place["output_index"], item=dict(item))

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **values: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **values}


def _message(text: str, logprobs: list[Any]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
    return {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"fc_{secrets.token_hex(16)}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }
