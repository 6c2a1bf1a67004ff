"""Answers while they are written: one thread per contestant reads its stream, the page shows all of them as they grow.

Knows the chat service and nothing of gradio.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from studio.engine.protocol import Event
from studio.errors import StudioError
from studio.records import AnswerUsage, MadeCall, MessageState

JOIN_S = 0.04  # tokens of this long become one update of the page
LOOK_S = 0.8  # between two looks at what the engine is loading

log = logging.getLogger(__name__)
Opens = Callable[[str], Iterator[Event]]


@dataclass
class AnswerColumn:
    """One answer while it is written. Read by its own thread, shown by the handler, stopped by a button."""

    contestant: str
    before: str = ""  # what it said before it was continued
    text: str = ""
    calls: list[MadeCall] = field(default_factory=list)
    usage: AnswerUsage = field(default_factory=AnswerUsage)
    error: StudioError | None = None
    state: MessageState = MessageState.STOPPED  # until its end has come
    ended: bool = False

    def take(self, event: Event) -> None:
        self.text += event.text
        for delta in event.calls:
            if delta.id or delta.name:
                self.calls.append(MadeCall(id=delta.id, name=delta.name, arguments=""))
            if self.calls:
                last = self.calls[-1]
                self.calls[-1] = last.model_copy(update={"arguments": last.arguments + delta.arguments})
        if event.error:
            self.error, self.state = event.error, MessageState.FAILED
        if event.usage:
            self._learn(event.usage.as_json())
        if event.finish_reason:
            self.state = MessageState.DONE
            self._learn({"finish_reason": event.finish_reason, **_known(event.facts or {})})

    def _learn(self, usage: Mapping[str, Any]) -> None:
        self.usage = AnswerUsage.model_validate({**self.usage.model_dump(exclude_unset=True), **usage})


class Answering:
    """All answers to one message. `opens` starts the stream of a contestant; closing it stops the generation."""

    def __init__(self, answers: list[AnswerColumn], opens: Opens) -> None:
        self.answers = answers
        self.stop = threading.Event()
        self._opens = opens
        self._events: queue.Queue[tuple[AnswerColumn, Event | None]] = queue.Queue()

    def start(self) -> None:
        """Ask all of them, so that the engine reads while the page is still being drawn."""
        for answer in self.answers:
            threading.Thread(target=self._read, args=(answer,), daemon=True).start()

    def updates(self) -> Iterator[bool]:
        """True when some text grew, False now and then while nothing comes; ends with the last answer, or when stopped."""
        looked = time.monotonic()
        while not self.stop.is_set() and not all(answer.ended for answer in self.answers):
            grown = self._take()
            if grown or time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                yield grown

    def _take(self) -> bool:
        """Wait for an event, then gather what comes within JOIN_S; the very first words of an answer are shown at once."""
        until = time.monotonic() + JOIN_S
        grown = False
        while (wait := until - time.monotonic()) > 0:
            try:
                answer, event = self._events.get(timeout=wait)
            except queue.Empty:
                break
            if event is None:
                answer.ended = True
                return True
            is_first = bool(event.text) and not answer.text
            answer.take(event)
            grown = grown or bool(event.text or event.calls)
            if is_first and self._events.empty():
                break
        return grown

    def _read(self, answer: AnswerColumn) -> None:
        """In a thread of its own, so that a silent engine can be stopped too. None marks the end."""
        try:
            stream: Any = self._opens(answer.contestant)
            try:
                for event in stream:
                    self._events.put((answer, event))
                    if self.stop.is_set():
                        break
            finally:
                stream.close()
        except StudioError as exc:
            answer.error, answer.state = exc, MessageState.FAILED
        except Exception as exc:
            log.exception("A chat answer broke off.")
            answer.state = MessageState.FAILED
            answer.error = StudioError("The answer broke off.", f"Try again; the log says more ({type(exc).__name__}).")
        finally:
            self._events.put((answer, None))


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of how an answer was made, where it is of the type that it should have: an engine may send anything."""
    kept: dict[str, Any] = {}
    for name in ("first_token_s", "tokens_per_s", "reused_tokens", "recalled", "speculation"):
        if not facts.get(name):
            continue
        try:
            AnswerUsage.model_validate({name: facts[name]})
        except ValidationError:
            continue
        kept[name] = facts[name]
    notes = facts.get("notes")
    if isinstance(notes, list):
        kept["notes"] = [note for note in notes if isinstance(note, str)]
    return {name: value for name, value in kept.items() if value}
