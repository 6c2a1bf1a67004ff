"""The queue and its thread over real models, without a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from studio.catalogue import hardware
from studio.engine import intake
from studio.engine.protocol import Event, GenerationRequest, ModelFolder
from studio.engine.scheduler import Scheduler
from studio.errors import EngineError
from studio.types import GenerationParams

Start = Callable[..., Scheduler]


class Asked:
    """One submitted answer and what came of it."""

    def __init__(self, scheduler: Scheduler, folder: ModelFolder, tokens: int = 8) -> None:
        self.events: list[Event] = []
        self.ended_at = 0.0
        self._ended = threading.Event()
        params = GenerationParams(temperature=0, max_new_tokens=tokens)
        answers = intake.prepare(GenerationRequest("m", folder, params, prompts=("Once",)), self._take)
        scheduler.submit(answers)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if event.finish_reason or event.error:
            self.ended_at = time.monotonic()
            self._ended.set()

    def error(self) -> EngineError | None:
        """Wait for the end; the error it ended with."""
        assert self._ended.wait(300)
        return self.events[-1].error


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Scheduler] = []

    def make(**options: float) -> Scheduler:
        scheduler = Scheduler(**options)  # type: ignore[arg-type]
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield make
    for scheduler in started:
        scheduler.close()


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> ModelFolder:
    return ModelFolder("stories", shared_data / "models" / "stories260K")


@pytest.fixture(scope="module")
def baby(shared_data: Path) -> ModelFolder:
    return ModelFolder("baby", shared_data / "models" / "babyllama105")


def until(condition: Callable[[], bool], limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_idle_model_gives_its_memory_back(start: Start, stories: ModelFolder) -> None:
    scheduler = start(idle_s=0.3)
    assert Asked(scheduler, stories).error() is None
    assert (loaded := scheduler.status().loaded) is not None and loaded.base == "stories"
    until(lambda: scheduler.status().loaded is None)
    assert Asked(scheduler, stories).error() is None


def test_another_base_takes_its_turn_in_the_order_of_asking(start: Start, stories: ModelFolder, baby: ModelFolder) -> None:
    scheduler = start()
    asked = [Asked(scheduler, folder) for folder in (stories, baby, stories)]
    assert [one.error() for one in asked] == [None, None, None]
    assert asked[0].ended_at < asked[1].ended_at < asked[2].ended_at


def test_unloading_ends_an_answer_that_takes_too_long(start: Start, stories: ModelFolder) -> None:
    scheduler = start()
    short, long = Asked(scheduler, stories, 2), Asked(scheduler, stories, 500)
    assert short.error() is None
    assert scheduler.unload(wait_s=0.05) > 0
    error = long.error()
    assert error is not None and error.code == "engine_unloaded"
    assert scheduler.status().loaded is None
    assert scheduler.unload(wait_s=5) == 0  # nothing there: answered at once


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(start: Start, stories: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = start()
    with monkeypatch.context() as small:
        small.setattr(hardware, "memory", lambda: hardware.Memory(1_000_000, 500_000))
        error = Asked(scheduler, stories).error()
    assert error is not None and (error.status, error.code) == (503, "out_of_memory")
    assert "GiB" in error.message and error.fix
    assert Asked(scheduler, stories).error() is None


def test_a_closed_scheduler_ends_what_waits_and_takes_nothing_more(start: Start, stories: ModelFolder) -> None:
    scheduler = start()
    running = Asked(scheduler, stories, 500)
    until(lambda: bool(running.events))
    scheduler.close()
    error = running.error()
    assert error is not None and error.code == "engine_stopping"
    with pytest.raises(EngineError, match="stopping"):
        Asked(scheduler, stories)
