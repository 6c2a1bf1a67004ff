"""The process that holds the engine's model, as the server asks it: what goes on in the next one, what fails, and what it says of itself."""

from __future__ import annotations

import json
import threading
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from studio.engine import model_process, wire
from studio.engine.failures import stopping
from studio.engine.model_process import ModelProcess
from studio.engine.protocol import Event, TokenLogprob, Usage
from studio.errors import EngineError

LOADED = {
    "base": "b", "adapters": [], "bytes": 70, "adapter_bytes": 0, "adapter_budget_bytes": 9, "device": "cpu", "quantization": "",
}  # fmt: skip


class Child:
    """A process that is told what to say."""

    def __init__(self, idle_s: float) -> None:
        self.idle_s, self.has_left, self.was_silent, self.sent = idle_s, False, False, []  # type: ignore[var-annotated]
        self.process = SimpleNamespace(returncode=None, poll=lambda: self.process.returncode)
        self._said: SimpleQueue[bytes] = SimpleQueue()
        self.was_sent = threading.Condition()

    def send(self, message: dict[str, Any]) -> None:
        with self.was_sent:
            self.sent.append(message)
            self.was_sent.notify_all()

    def lines(self) -> Any:
        return iter(self._said.get, b"")

    def says(self, **message: Any) -> None:
        self._said.put(json.dumps(message).encode())

    def ends(self, code: int = 0) -> None:
        self.process.returncode = code
        self._said.put(b"")

    def close(self) -> None:
        pass

    def kill(self) -> None:
        self.ends(-9)

    def asked(self, count: int) -> Any:
        """The message of that number, once it is there."""
        with self.was_sent:
            assert self.was_sent.wait_for(lambda: len(self.sent) >= count, 10)
        return self.sent[count - 1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Every process that was started."""
    children: list[Child] = []

    def start(idle_s: float) -> Child:
        children.append(Child(idle_s))
        return children[-1]

    monkeypatch.setattr(model_process, "ModelChild", start)
    return children


class Answers:
    """What was delivered."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def first(self, count: int) -> list[Event]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, 10)
        return self.events


def event(**values: Any) -> dict[str, Any]:
    return wire.event_as_json(Event(**values))


def test_what_an_answer_says_arrives_as_it_was_said() -> None:
    logprob = TokenLogprob(b"\xff", -1.0, ((b"a", -2.0),))
    for one in (
        Event(),
        Event(index=2, text="x", logprobs=(logprob,), facts={"a": 1}),
        Event(index=1, finish_reason="stop", usage=Usage(3, 4)),
    ):
        assert wire.read_event(json.loads(json.dumps(wire.event_as_json(one)))) == one
    assert wire.event_as_json(Event(index=3)) == {"index": 3}
    found = wire.read_event(event(error=EngineError("No.", "Wait.", status=503, code="full", retry_after=3))).error
    assert found is not None and (found.message, found.fix, found.status, found.code, found.details) == (
        "No.", "Wait.", 503, "full", {"retry_after": 3},
    )  # fmt: skip


def test_one_process_is_started_ahead_and_answers_by_number(made: list[Child]) -> None:
    model, first, second = ModelProcess(9.0), Answers(), Answers()
    model.start()
    model.start()
    (child,) = made
    assert child.idle_s == 9.0
    numbers = [model.submit("chat", {"n": 1}, first), model.submit("completion", {}, second)]
    assert numbers == [1, 2]
    assert child.sent == [
        {"op": "answer", "kind": "chat", "body": {"n": 1}, "done": [], "id": 1},
        {"op": "answer", "kind": "completion", "body": {}, "done": [], "id": 2},
    ]
    child.says(id=2, event=event(text="b"))
    child.says(id=1, event=event(text="a"))
    child.says(id=1, error=wire.error_as_json(EngineError("No.", "Wait.")))
    assert [one.text for one in first.first(2)] == ["a", ""] and first.events[1].error is not None
    assert [one.text for one in second.first(1)] == ["b"]
    model.cancel(2)
    model.cancel(2)
    assert child.sent[2:] == [{"op": "cancel", "id": 2}]
    model.close()


def test_what_was_not_begun_goes_on_in_the_next_process_and_what_was_fails(made: list[Child]) -> None:
    model = ModelProcess(9.0)
    waits, half, whole = Answers(), Answers(), Answers()
    for answers in (waits, half, whole):
        model.submit("chat", {}, answers)
    (child,) = made
    child.says(id=2, event=event(index=0, text="x"))
    child.says(id=3, event=event(index=1, text="y", finish_reason="stop"))
    child.says(id=3, event=event(index=0, finish_reason="stop"))
    child.says(id=0)
    child.ends()
    error = half.first(2)[1].error
    assert error is not None and error.code == "engine_unloaded"
    successor = made[1]
    assert [(successor.asked(n)["id"], successor.asked(n)["done"]) for n in (1, 2)] == [(1, []), (3, [0, 1])]
    successor.says(id=1, event=event(text="now", finish_reason="stop"))
    assert waits.first(1)[0].text == "now"
    model.close()


def test_all_that_a_killed_process_was_asked_fails_and_the_next_question_starts_another(made: list[Child]) -> None:
    model, answers = ModelProcess(9.0), Answers()
    model.submit("chat", {}, answers)
    made[0].ends(-9)
    error = answers.first(1)[0].error
    assert error is not None and error.code == "engine_gone" and "(signal 9)" in error.message
    with model._lock:
        assert model._child is None and len(made) == 1
    assert model.status().loaded is None
    model.submit("chat", {}, answers)
    assert len(made) == 2
    model.close()


def test_a_busy_process_is_as_it_said_last(made: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelProcess(9.0)
    assert model.status().active == 0 and made == [], "nothing is started to say that nothing is loaded"
    model.start()
    found: list[Any] = []

    def ask(what: Any) -> None:
        asking = threading.Thread(target=lambda: found.append(what()))
        asking.start()
        made[0].asked(len(found) + 1)
        made[0].says(id=len(found) + 1, value={"active": 3, "waiting": 2, "loaded": LOADED})
        asking.join(10)

    ask(model.status)
    assert (found[0].active, found[0].waiting, found[0].loaded.bytes) == (3, 2, 70)
    monkeypatch.setattr(model_process, "STATUS_S", 0.0)
    assert model.status() == found[0]
    with pytest.raises(EngineError, match="busy"):
        model.read("preview", {}, within_s=0.0)
    assert model._asked == {}
    model.close()


def test_an_unload_waits_for_the_process_to_leave_and_says_what_it_held(made: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelProcess(9.0)
    assert model.unload() == 0
    model.start()
    model._last = model_process.EngineStatus.model_validate({"loaded": LOADED})
    monkeypatch.setattr(model_process, "STATUS_S", 0.0)
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(model.unload(1.5)))
    asking.start()
    assert made[0].asked(2) == {"op": "unload", "wait_s": 1.5, "id": 2}
    made[0].says(id=0)
    made[0].ends()
    asking.join(10)
    assert found == [70] and len(made) == 2, "another one is ready"
    monkeypatch.setattr(model_process, "LONGEST_STEP_S", 0.0)
    model._last = model_process.EngineStatus.model_validate({"loaded": LOADED})
    assert model.unload(0.0) == 70 and made[1].process.returncode == -9, "one that does not leave is killed"
    model.close()


def test_whoever_is_asked_while_the_engine_stops_says_so(made: list[Child]) -> None:
    model, answers = ModelProcess(9.0), Answers()
    model.submit("chat", {}, answers)
    model.close()
    assert answers.events[0].error is not None and answers.events[0].error.code == stopping().code
    assert made[0].process.returncode == -9
    with pytest.raises(EngineError, match="stopping"):
        model.submit("chat", {}, answers)
    model.start()
    assert len(made) == 1


def test_half_a_line_of_a_process_that_was_killed_is_passed_over(made: list[Child]) -> None:
    model, answers = ModelProcess(9.0), Answers()
    model.submit("chat", {}, answers)
    made[0]._said.put(b'{"id": 1, "ev')
    made[0].says(id=7, value=1)  # cancelled
    made[0].says(id=1, event=event(text="on"))
    assert answers.first(1)[0].text == "on"
    model.close()


def test_a_process_that_does_not_answer_is_replaced_and_those_who_wait_are_told(made: list[Child], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_process, "PING_S", 0.01)
    monkeypatch.setattr(model_process, "STOPPED_S", 0.02)
    stopped = threading.Event()
    monkeypatch.setattr(model_process.processes, "is_stopped", lambda pid: stopped.is_set())
    model, answers = ModelProcess(9.0), Answers()
    model.submit("chat", {}, answers)
    (child,) = made
    child.process.pid = 7
    model.watch()
    assert child.asked(2)["op"] == "ping"
    child.says(id=child.asked(2)["id"], value=True)
    assert child.asked(3)["op"] == "ping" and not answers.events, "asked again after an answer"
    stopped.set()
    error = answers.first(1)[0].error
    assert error is not None and (error.status, error.code, error.details["retry_after"]) == (503, "engine_restarting", 5)
    model.close()
