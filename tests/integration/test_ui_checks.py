"""Reports behind the page: made in the background, kept for whoever comes back, and a refusal is told instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from studio.services import Studio
from studio.settings import Settings
from studio.ui.checks import Checks

OPTIONS: dict[str, Any] = {"base_model": None, "max_length": 1024, "chat_template": None, "against": []}


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio.open(settings)


def until(look: Callable[[], Any], limit_s: float = 180.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (value := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_a_report_is_made_once_and_kept(studio: Studio) -> None:
    data = studio.datasets.add_text('{"prompt": "a", "completion": ""}\n{"prompt": "b", "completion": "yes, it is"}')
    checks = Checks(studio)
    checks.start(data.id, OPTIONS)
    under_way = checks.state(data.id, OPTIONS)
    checks.start(data.id, OPTIONS)

    assert under_way is not None and under_way.error is None and checks.state(data.id, OPTIONS) is under_way
    report = until(lambda: studio.curation.cached_report(data.id, **OPTIONS))
    assert [finding.check for finding in report.findings] == ["empty_answers"]
    until(lambda: checks.state(data.id, OPTIONS) is None)


def test_a_refusal_is_told_until_it_is_tried_again(studio: Studio) -> None:
    data = studio.datasets.add_text('{"prompt": "a", "completion": "b"}')
    checks = Checks(studio)
    wrong = {**OPTIONS, "base_model": "nothing-here"}
    checks.start(data.id, wrong)

    failed = until(lambda: (check := checks.state(data.id, wrong)) and check.error and check)

    assert "nothing-here" in failed.error.message and "nothing-here" in str(failed.told())
    checks.start(data.id, wrong)
    assert checks.state(data.id, wrong) is not failed
    until(lambda: (check := checks.state(data.id, wrong)) and check.is_over)
