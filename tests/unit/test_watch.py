"""Children that live and do not answer: when that is a reason to start them anew, and what those who wait are told."""

from __future__ import annotations

import http.client
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from studio import watch
from studio.watch import HealthWatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = SimpleNamespace(s=100.0, stopped=False)
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now.s))
    monkeypatch.setattr(watch.processes, "is_stopped", lambda pid: now.stopped)
    return now


def test_silence_counts_after_an_answer_of_the_same_process(clock: Any) -> None:
    child: Any = SimpleNamespace(name="engine", pid=5)
    seen = HealthWatch(child, "http://x")
    for _ in range(9):
        seen.take(5, False)
    clock.s += 1000
    assert seen.silence() == 0, "it is starting"
    seen.take(5, True)
    clock.s += watch.SILENT_S + 1
    seen.take(5, False)
    seen.take(5, False)
    assert seen.silence() == 0, "too few questions to tell it from a sleep of the whole machine"
    seen.take(5, False)
    assert seen.silence() == watch.SILENT_S + 1
    seen.take(5, True)
    assert seen.silence() == 0, "it answers again"
    for _ in range(3):
        seen.take(5, False)
    clock.s += watch.STOPPED_S + 1
    assert seen.silence() == 0
    clock.stopped = True
    assert seen.silence() == watch.STOPPED_S + 1, "a stopped one needs no patience"
    child.pid = 6
    assert seen.silence() == 0, "another process"
    child.pid = None
    assert seen.silence() == 0, "none"


def test_those_who_wait_are_told_to_ask_again() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        found: list[tuple[int, str | None, bytes]] = []

        def ask() -> None:
            connection = http.client.HTTPConnection(*listener.getsockname(), timeout=20)
            connection.request("GET", "/api/status")
            answer = connection.getresponse()
            found.append((answer.status, answer.getheader("Retry-After"), answer.read()))
            connection.close()

        waiting = [threading.Thread(target=ask) for _ in range(3)]
        for one in waiting:
            one.start()
        told = 0
        while told < 3:
            told += watch.tell_waiting(listener)
        for one in waiting:
            one.join(timeout=20)
        assert told == 3 and [status for status, _, _ in found] == [503] * 3
        assert {after for _, after, _ in found} == {str(watch.RETRY_AFTER_S)} and b"Ask again" in found[0][2]
        assert listener.gettimeout() is None and not watch.answers("http://127.0.0.1:1")
