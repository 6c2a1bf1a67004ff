"""An attempt under watch: when its child is asked to stop and when it is killed, how often its claim beats, what a light job's end is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jobs import attempts
from jobs.attempts import ChildAttempt, LightAttempt, Pulse
from jobs.executor import Exit
from jobs.light import LightJobStopped
from jobs.outcome import Outcome
from studio.db.lifecycle import Claim, LostClaimError
from studio.errors import StudioError
from studio.records import CancelRequest


class Watch:
    """A child, a clock that moves with every look, and what was asked of the child when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends_at: float | None = None) -> None:
        self.now, self.ends_at, self.done = 100.0, ends_at, []  # type: ignore[var-annotated]
        self.request: CancelRequest | None = None
        self.stopping = threading.Event()
        monkeypatch.setattr(attempts.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(attempts.time, "sleep", self.sleep)
        monkeypatch.setattr(attempts, "StoppedTrainer", lambda child: SimpleNamespace(look=lambda: self.done.append(("look", self.now))))
        monkeypatch.setattr(attempts.executor, "poll", self.poll)
        monkeypatch.setattr(attempts.executor, "stop", lambda child: self.done.append(("stop", self.now)))
        monkeypatch.setattr(attempts.executor, "kill", self.kill)

    def sleep(self, seconds: float) -> None:
        assert seconds == attempts.TICK_S == 0.25
        self.now += seconds

    def poll(self, child: Any) -> Exit | None:
        return Exit(0) if self.ends_at is not None and self.now >= self.ends_at else None

    def kill(self, child: Any) -> None:
        self.done.append(("kill", self.now))
        self.ends_at = self.now

    def outcome(self, monkeypatch: pytest.MonkeyPatch, ask: Any = None) -> bool:
        """Whether the end counts as one that we asked for."""
        judged: list[bool] = []
        monkeypatch.setattr(attempts, "judge", lambda ended, files, we_asked, config: judged.append(we_asked) or Outcome("stopped"))
        attempt = ChildAttempt.__new__(ChildAttempt)
        runner = SimpleNamespace(stopping=self.stopping)

        def beat(ingest: Any) -> CancelRequest | None:
            if ask:
                ask()
            return self.request

        attempt.runner, attempt.files, attempt.pulse = runner, None, SimpleNamespace(beat=beat)  # type: ignore[assignment]
        attempt._watch(None)  # type: ignore[arg-type]
        return judged == [True]


@pytest.mark.parametrize(
    ("request_", "is_stopping", "seconds"),
    [
        (CancelRequest.CANCEL, False, 8.0),
        (CancelRequest.KEEP, False, 30.0),
        (CancelRequest.PAUSE, False, 30.0),
        (None, True, 5.0),
        (CancelRequest.PAUSE, True, 5.0),
    ],
)
def test_a_child_is_asked_once_and_killed_after_its_time(
    monkeypatch: pytest.MonkeyPatch, request_: CancelRequest | None, is_stopping: bool, seconds: float
) -> None:
    watch = Watch(monkeypatch)
    watch.request = request_
    if is_stopping:
        watch.stopping.set()
    assert watch.outcome(monkeypatch)
    assert watch.done == [("stop", 100.0), ("kill", 100.0 + seconds + 0.25)], "not before its time is over"


def test_a_child_that_nobody_asks_is_looked_after_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, ends_at=100.5)
    assert not watch.outcome(monkeypatch)
    assert watch.done == [("look", 100.0), ("look", 100.25)]


def test_a_request_that_is_taken_back_leaves_the_time_of_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    watch.request = CancelRequest.CANCEL

    def take_back() -> None:
        if watch.now > 101:
            watch.request = None

    assert watch.outcome(monkeypatch, take_back) and watch.done[-1] == ("kill", 130.25)


# the beat


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    state = SimpleNamespace(now=50.0, beats=[], request=CancelRequest.PAUSE, trouble=None)
    monkeypatch.setattr(attempts.time, "monotonic", lambda: state.now)

    def beat(session: Any, held: Any) -> CancelRequest | None:
        state.beats.append(state.now)
        if state.trouble:
            raise state.trouble
        return state.request

    monkeypatch.setattr(attempts.lifecycle, "beat", beat)
    yield state


class Written:
    """A database that opens a transaction."""

    def write(self) -> Any:
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None


def test_a_claim_beats_every_half_second_and_a_busy_database_costs_a_beat(beats: Any) -> None:
    ingested: list[float] = []
    pulse = Pulse(SimpleNamespace(db=Written()), Claim("j", "us", 1))  # type: ignore[arg-type]

    def at(seconds: float) -> CancelRequest | None:
        beats.now += seconds
        return pulse.beat(lambda session: ingested.append(beats.now))

    assert [at(0), at(0.25), at(0.24), at(0.01)] == [CancelRequest.PAUSE] * 4
    assert beats.beats == ingested == [50.0, 50.5]
    beats.trouble, beats.request = OperationalError("", {}, Exception("locked")), None
    assert at(0.5) == CancelRequest.PAUSE, "the last that is known"
    beats.trouble = None
    assert at(0.49) == CancelRequest.PAUSE and at(0.01) is None and len(beats.beats) == 4
    beats.trouble = LostClaimError("gone")
    with pytest.raises(LostClaimError):
        at(0.5)


# light jobs


def light(monkeypatch: pytest.MonkeyPatch, work: Any, request: CancelRequest | None = None) -> LightAttempt:
    monkeypatch.setattr(attempts, "_light_job", lambda kind: work)
    runner = SimpleNamespace(settings=None, db=None, stopping=threading.Event())
    job = SimpleNamespace(id="j", config={}, kind="compare")
    made = LightAttempt(runner, Claim("j", "us", 1), job)  # type: ignore[arg-type]
    made.pulse = SimpleNamespace(beat=lambda ingest: request)  # type: ignore[assignment]
    return made


def raises(problem: Exception) -> Any:
    def work(context: Any) -> Any:
        raise problem

    return work


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda context: {"a": 1}, Outcome("succeeded", result={"a": 1})),
        (raises(LightJobStopped()), Outcome("stopped")),
        (raises(StudioError("Bad.", "Mend.")), Outcome("failed", "Bad.", "Mend.")),
        (raises(LostClaimError()), Outcome("lost")),
        (raises(KeyError("x")), Outcome("failed", "The job ended with an error: KeyError: 'x'", "The worker's log has the details.")),
    ],
)
def test_what_a_light_job_ends_with(monkeypatch: pytest.MonkeyPatch, work: Any, outcome: Outcome) -> None:
    assert light(monkeypatch, work).run() == outcome


def test_a_light_job_that_does_not_listen_is_left_behind_after_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, released = 100.0, threading.Event()

    def monotonic() -> float:
        nonlocal now
        now += 0.5
        return now

    def work(context: Any) -> Any:
        released.wait(20)
        return {"heard": context.stop_requested()}

    attempt = light(monkeypatch, work, CancelRequest.CANCEL)
    monkeypatch.setattr(attempts, "TICK_S", 0.001)
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=monotonic))
    began = time.monotonic()
    assert attempt.run() == Outcome("stopped") and 105 < now < 108 and attempt._stop.is_set()
    released.set()
    assert time.monotonic() - began < 20


def test_the_time_left_of_a_light_job_follows_from_the_steps_of_this_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = light(monkeypatch, None)
    monkeypatch.setattr(attempts.time, "monotonic", lambda: 110.0)
    attempt._begun, attempt._first = 100.0, 4
    assert [attempt._eta_s(step, 10) for step in (4, 5, 6, 9, 10)] == [None, 50.0, 20.0, 2.0, 0.0]
    attempt._first = None
    assert attempt._eta_s(5, 10) == 10.0 and attempt._eta_s(0, 10) is None


def test_a_kind_without_a_function_is_no_light_job() -> None:
    for kind in ("nothing", "train"):
        with pytest.raises(StudioError, match="has no jobs of kind"):
            attempts._light_job(kind)
    assert callable(attempts._light_job("compare"))
