"""The child that holds the engine's model: what it answers to each line of the server, also where a request is cancelled half way."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from studio.engine import intake, model_child, tokenizing
from studio.engine.model_child import HeldModel, Speaker
from studio.engine.protocol import Event
from studio.errors import EngineError
from studio.records import EngineStatus
from studio.settings import Settings


class Said:
    """Takes the place of the speaker."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def say(self, **message: Any) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def first(self, count: int) -> list[dict[str, Any]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, 10)
        return self.messages


class Queue:
    """Takes the place of the scheduler."""

    def __init__(self, **options: Any) -> None:
        self.options, self.submitted, self.unloads = options, [], []  # type: ignore[var-annotated]

    def start(self) -> None:
        pass

    def status(self) -> EngineStatus:
        return EngineStatus(active=2)

    def unload(self, wait_s: float) -> int:
        self.unloads.append(wait_s)
        return 70

    def submit(self, answers: list[Any]) -> None:
        if len(answers) > 3:
            raise EngineError("The queue is full.", "Wait.", status=429)
        self.submitted.append(answers)


class Answer:
    def __init__(self, index: int, deliver: Callable[[Event], None]) -> None:
        self.index, self.deliver, self.is_over, self.is_cancelled = index, deliver, False, False

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.fixture
def held(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldModel]:
    def prepare(request: Any, deliver: Callable[[Event], None]) -> list[Any]:
        if request == "broken":
            raise KeyError("x")
        return [Answer(index, deliver) for index in range(request)]

    monkeypatch.setattr(model_child, "Scheduler", Queue)
    monkeypatch.setattr(model_child.card, "take_freest", lambda: None)
    monkeypatch.setattr(model_child, "PARSERS", {"chat": lambda body: body})
    monkeypatch.setattr(intake, "prepare", prepare)
    monkeypatch.setattr(tokenizing, "READINGS", {"preview": lambda body: {"context": body}})
    made = HeldModel(Said(), 9.0)  # type: ignore[arg-type]
    yield made
    made._pool.shutdown()


def asked(number: int, body: Any, done: list[int] | None = None, op: str = "answer") -> dict[str, Any]:
    return {"id": number, "op": op, "kind": "chat", "body": body, "done": done or []}


def settled(held: HeldModel) -> None:
    """Once all that was asked has been prepared."""
    held._pool.shutdown()


def test_the_scheduler_is_made_by_the_settings_and_asked_by_the_server(held: HeldModel, settings: Settings) -> None:
    queue: Any = held._scheduler
    assert queue.options == {
        "idle_s": 9.0, "cache": settings.cache, "leave": held._leave, "adapter_bytes": settings.adapter_memory_bytes,
        "most_bytes": settings.kv_cache_bytes,
    }  # fmt: skip
    said: Any = held._speaker
    held.take({"id": 4, "op": "status"})
    assert said.messages[0]["id"] == 4 and said.messages[0]["value"]["active"] == 2 and "ok" not in said.messages[0]["value"]
    held.take({"id": 5, "op": "unload", "wait_s": 1.5})
    assert said.first(2)[1] == {"id": 5, "value": 70} and queue.unloads == [1.5]
    held.take({"id": 6, "op": "read", "kind": "preview", "body": 512})
    assert said.first(3)[2]["value"]["context"] == 512 and queue.submitted == []


def test_answers_are_submitted_without_those_that_are_done_and_forgotten_at_their_end(held: HeldModel) -> None:
    queue, said = held._scheduler, held._speaker
    held.take(asked(1, 3, done=[1]))
    settled(held)
    ((first, last),) = queue.submitted  # type: ignore[attr-defined]
    assert [first.index, last.index] == [0, 2] and held._preparing == set()
    first.is_over = True
    first.deliver(Event(index=0, text="x", finish_reason="stop"))
    assert said.messages == [{"id": 1, "event": {"index": 0, "text": "x", "finish_reason": "stop"}}] and 1 in held._answers  # type: ignore[attr-defined]
    last.is_over = True
    last.deliver(Event(index=2, finish_reason="stop"))
    assert held._answers == {}


def test_what_nobody_waits_for_is_cancelled_wherever_it_is(held: HeldModel) -> None:
    queue: Any = held._scheduler
    held._preparing.add(1)
    for number in (1, 2):  # of 2 nothing is known: it is over
        held.take({"id": number, "op": "cancel"})
    assert held._cancelled == {1}
    held.take(asked(1, 1))
    held.take(asked(3, 2))
    settled(held)
    assert len(queue.submitted) == 1 and (held._cancelled, held._preparing) == (set(), set())
    held.take({"id": 3, "op": "cancel"})
    assert [answer.is_cancelled for answer in queue.submitted[0]] == [True, True] and held._answers == {} and held._cancelled == set()


def test_requests_that_cannot_be_answered_say_why(held: HeldModel, caplog: pytest.LogCaptureFixture) -> None:
    held.take(asked(1, 4))
    held.take(asked(2, "broken"))
    settled(held)
    errors = {message["id"]: message["error"] for message in held._speaker.messages}  # type: ignore[attr-defined]
    assert (errors[1]["message"], errors[1]["status"]) == ("The queue is full.", 429)
    assert errors[2]["message"] == "The request can't be answered: KeyError: 'x'." and errors[2]["status"] == 500
    assert [record.message for record in caplog.records] == ["a request could not be read"], "a defect is logged, a refusal is not"


def test_the_child_says_good_bye_before_it_leaves(held: HeldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ends = io.StringIO(), list[int]()
    monkeypatch.setattr(model_child.os, "_exit", ends.append)
    held._speaker = Speaker(out)
    held._speaker.say(id=1, value="é")
    held._leave()
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [{"id": 1, "value": "é"}, {"id": 0, "value": "bye"}] and ends == [
        0
    ]


def test_a_child_whose_server_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> None:
        raise BrokenPipeError

    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended

    monkeypatch.setattr(model_child.os, "_exit", end)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    speaker = Speaker(SimpleNamespace(write=refuse, flush=lambda: None))  # type: ignore[arg-type]
    speaker.say(id=1)
    with pytest.raises(Ended):
        speaker._write()
