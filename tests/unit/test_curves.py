"""What was observed of a training, as a page gets it: few points however long the run, answers merged, forgetting told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from studio.db import lifecycle
from studio.db.models import JobRow
from studio.errors import ConfigError
from studio.records import Curves
from studio.services import Studio, loggers
from studio.settings import Settings
from studio.ui import jobs_watched

LONG = 3000


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings)
    with opened.db.write() as session:
        lifecycle.submit(session, JobRow(id="one", kind="train", name="one", config={}))
        held = lifecycle.claim(session, "one", "us", "device:0")
        assert held
        lifecycle.ingest(session, held, list(observed()), 1)
    yield opened
    opened.db.dispose()


def observed() -> Iterator[dict[str, Any]]:
    for step in range(1, LONG + 1):
        yield {"type": "progress", "step": step, "loss": 1 / step, "tokens": step, "seconds": step / 10, "max_steps": LONG}
        yield {"type": "machine", "step": step, "process_bytes": 2**30, "host_bytes": 2**31, "cores": 1.0}
    yield {"type": "samples", "step": 0, "rows": [{"line": 1, "prompt": "p", "reference": "r"}], "answers": ["b"]}
    for step in range(50, LONG + 1, 50):
        yield {"type": "samples", "step": step, "answers": ["x" if step < 2000 else "<b>y</b>"]}
        yield {"type": "drift", "step": step, "drift": step / LONG, "base_loss": 2.0}
    row = {"line": 3, "loss": 0.5, "prompt": "p", "reference": "r", "answer": ""}
    yield {"type": "rows", "step": LONG, "judged": 9, "best": [row], "worst": [row]}


def test_a_long_run_gives_few_points_and_keeps_its_ends(studio: Studio) -> None:
    curves = studio.jobs.curves("one")
    assert all(len(points) <= 400 for _, points in curves) and len(curves.train) == len(curves.machine) == 400
    assert (curves.train[0]["step"], curves.train[-1]["step"], curves.drift[-1]["drift"]) == (1, LONG, 1.0)
    point = studio.jobs.metrics("one")[49]
    assert (point["step"], point["loss"], point["process_bytes"], round(point["drift"], 3)) == (50, 0.02, 2**30, 0.017)


def test_what_was_watched_is_told_and_drawn(studio: Studio) -> None:
    watched = studio.jobs.show("one").watched
    assert len(watched.samples.looks) <= 20 and dict(watched.samples.looks[-1]) == {"step": LONG, "answers": ["<b>y</b>"]}
    assert watched.drift.ratio == 2.718 and "2.7 times less likely" in watched.drift.advice
    drawn = jobs_watched.watched(watched)
    assert drawn and [text for _, text in drawn["questions"][0]["answers"]] == ["b", "x", "<b>y</b>"]
    assert [title for title, _ in drawn["ends"]] == ["Held-out rows it knows best", "Held-out rows it knows least"]
    titles = " ".join(chart["what"] for chart in jobs_watched.small_charts(studio.jobs.curves("one")))
    assert all(word in titles for word in ("Speed", "Drift", "Memory", "cores")) and "GPU" not in titles


def test_a_gpu_has_curves_of_its_own() -> None:
    reading = {"device_use": 0.9, "device_temperature_c": 60, "device_power_w": 200.0, "torch_bytes": 1, "device_bytes": 2}
    found = Curves(train=[], eval=[], drift=[], machine=[{"step": step, **reading} for step in (1, 2)])
    titles = [chart["what"] for chart in jobs_watched.small_charts(found)]
    assert [title.split(" (")[0].split(":")[0] for title in titles] == ["GPU memory", "GPU use", "GPU temperature", "GPU power"]


@pytest.mark.parametrize(("name", "words"), [("nonsense", "no such logger"), ("neptune", "is not installed")])
def test_a_logger_that_is_not_there_is_refused_before_launch(name: str, words: str) -> None:
    from jobs.config import JobConfig

    with pytest.raises(ConfigError, match=words):
        loggers.check(JobConfig(report_to=name))
    loggers.check(JobConfig(report_to="none"))
