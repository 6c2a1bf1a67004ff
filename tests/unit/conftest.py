"""Fixtures of unit tests: a studio without an engine, and a clock that stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from studio.services import Studio
from studio.settings import Settings
from tests.stores import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    return made


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    made = Studio.open(settings, at_terminal=True)
    yield made
    made.db.dispose()
