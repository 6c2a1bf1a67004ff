"""Times that are only shown: when waiting jobs start and end, and what the queue says of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from studio.db import lifecycle
from studio.db.models import JobRow
from studio.db.session import Database
from studio.records import QueueOverview
from studio.services.forecast import LIKE, Pace, Span, _places_are_free_in, duration, forecast
from studio.services.jobs import _last_end
from studio.settings import Settings
from studio.ui import jobs_head, jobs_queue, words
from tests import job_records
from tests.runs import open_store

CONFIG = {"base_model": "starter", "method": "lora", "max_length": 64, "quantization": {"load_in_4bit": False}}
KEY = ("starter", "None", "lora", "None", "64", "None", "None", "None", "None", "False")


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def submit(db: Database, name: str, **values: Any) -> str:
    with db.write() as session:
        return lifecycle.submit(session, JobRow(**{"kind": "train", "name": name, "config": CONFIG, "planned_steps": 10, **values})).id


def ran(db: Database, name: str, *, steps: int, seconds: float, around: float = 0.0, attempts: int = 1, **values: Any) -> None:
    """A training that has succeeded: `seconds` for its steps, `around` before and behind them."""
    job_id = submit(db, name, **values)
    with db.write() as session:
        for _ in range(attempts):
            held = lifecycle.claim(session, job_id, "us", "device:0")
            assert held
            if held.attempt < attempts:
                lifecycle.release(session, held)
        lifecycle.finish(session, held, "SUCCEEDED", result={"steps": steps, "seconds": seconds})
        job = session.get_one(JobRow, job_id, populate_existing=True)
        assert job.ended_at
        job.started_at = job.ended_at - seconds - around


def ends(db: Database) -> dict[str, tuple[float | None, float | None]]:
    with db.read() as session:
        names = {job.id: job.name for job in session.query(JobRow)}
        spans = forecast(session)
    return {names[job_id]: (_rounded(span.starts_in_s), _rounded(span.ends_in_s)) for job_id, span in spans.items()}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def test_the_median_of_similar_runs_counts_and_their_time_around_the_steps_is_added(db: Database) -> None:
    for number, (seconds, around) in enumerate([(10, 1), (20, 2), (90, 9)]):  # 1, 2 and 9 s a step
        ran(db, f"old-{number}", steps=10, seconds=seconds, around=around)
    ran(db, "other", steps=10, seconds=500, config={**CONFIG, "quantization": {"load_in_4bit": True}})
    submit(db, "first")
    submit(db, "second", planned_steps=None, max_steps=5)
    assert ends(db) == {"first": (0.0, 22.0), "second": (22.0, 34.0)}


def test_runs_on_the_same_data_count_before_others_and_only_the_latest(db: Database) -> None:
    for number in range(LIKE + 1):
        ran(db, f"old-{number}", steps=10, seconds=10.0 * (number + 1))
    submit(db, "waiting")
    # the latest five take 2, 3, 4, 5, 6 s a step: the first, 1 s, is too long ago
    assert ends(db) == {"waiting": (0.0, 40.0)}
    job = JobRow(config=CONFIG, dataset_id="mine", planned_steps=10, checkpoint_step=4)
    paces = [Pace(KEY, "theirs", 9.0, 0.0), Pace(KEY, "mine", 2.0, 3.0), Pace(KEY, "theirs", 9.0, 0.0)]
    assert duration(job, paces) == 3.0 + 2.0 * 6
    job.checkpoint_step = 40
    assert duration(job, paces) == 3.0
    job.planned_steps = None
    assert duration(job, paces) is None and duration(JobRow(config={}, planned_steps=1, checkpoint_step=0), paces) is None


def test_of_an_interrupted_run_only_the_time_of_its_steps_counts(db: Database) -> None:
    ran(db, "old", steps=10, seconds=20, around=1000, attempts=2)
    submit(db, "waiting")
    assert ends(db) == {"waiting": (0.0, 20.0)}


def test_what_runs_counts_with_the_time_that_is_left_and_as_a_pace(db: Database) -> None:
    running = submit(db, "running")
    submit(db, "waiting")
    with db.write() as session:
        held = lifecycle.claim(session, running, "us", "device:0")
        assert held
        session.get_one(JobRow, running).started_at = time.time() - 13.0  # 4 steps of 3 s, and one second before them
        lifecycle.ingest(session, held, [{"type": "progress", "step": 4, "max_steps": 10, "eta_s": 18.0, "loss": 1.0}], 1)
    assert {name: [end and round(end) for end in span] for name, span in ends(db).items()} == {
        "running": [None, 18],
        "waiting": [18, 49],
    }


def test_a_queue_has_an_end_only_when_the_end_of_every_job_is_known() -> None:
    known, unknown = [Span(0.0, 5.0), Span(5.0, 9.0)], [Span(0.0, 5.0), Span(5.0, None)]
    assert [_last_end(known, 2), _last_end(known, 3), _last_end(unknown, 2), _last_end([], 0)] == [9.0, None, None, None]


@pytest.mark.parametrize(
    ("running", "queued", "paused", "left", "said"),
    [
        (0, 0, False, None, "Nothing runs and nothing waits."),
        (1, 0, False, 60.0, "This one ends at about"),
        (1, 2, False, 60.0, "These 3 end at about"),
        (1, 2, False, None, "1 running, 2 waiting."),
        (1, 2, True, None, "The queue is paused: 2 jobs will wait until it is resumed. What runs goes on."),
        (0, 1, True, None, "The queue is paused: 1 job will wait until it is resumed."),
    ],
)
def test_the_queue_counts_what_runs_and_what_waits(running: int, queued: int, paused: bool, left: float | None, said: str) -> None:
    jobs = [job_records.job(status="RUNNING") for _ in range(running)]
    overview = QueueOverview(running=jobs, queued=queued, paused=paused, queue_eta_s=left)
    assert jobs_queue.sentence(overview, time.time()).startswith(said)


def test_a_row_of_the_list_says_its_step_its_start_and_its_neighbours() -> None:
    waiting = [job_records.job(id=name, name=name, starts_in_s=starts) for name, starts in (("a", 5.0), ("b", 60.0 * 20), ("c", None))]
    running = job_records.job(id="r", status="RUNNING", started_at=1.0, progress=job_records.progress(3, 12, 90.0))
    ended = job_records.job(id="e", status="SUCCEEDED", started_at=100.0, ended_at=9000.0, seconds_of_work=60.0)
    groups = jobs_queue.groups([running, *waiting, ended], {})
    assert [(group["title"], len(group["jobs"])) for group in groups] == [("Running", 1), ("Waiting, in this order", 3), ("Ended", 1)]
    assert [(row["up"], row["down"]) for row in groups[1]["jobs"]] == [("", "b"), ("a", "c"), ("b", "")]
    assert groups[0]["jobs"][0]["facts"] == "step 3 of 12 · 90 s left"
    assert [row["facts"].split(" · ")[0] for row in groups[1]["jobs"]][:2] == ["starts next", "starts in 20 min"]
    assert groups[2]["jobs"][0]["facts"].endswith("took 60 s")
    many = jobs_queue.groups([job_records.job(status="FAILED", ended_at=1.0) for _ in range(jobs_queue.SHOWN_ENDED + 7)], {})
    assert len(many[0]["jobs"]) == jobs_queue.SHOWN_ENDED and many[0]["more"].startswith("7 older ones")


def test_the_head_of_a_job_says_how_far_it_is_and_what_it_reached() -> None:
    running = job_records.detail(status="RUNNING", progress=job_records.progress(3, 12, 90.0))
    head = jobs_head.head(running)
    assert (head["part"], head["progress"]) == (0.25, "step 3 of 12 · 25 % · 90 s left")
    assert words.part(job_records.progress(None, 4)) == 0.0 and words.part(job_records.progress(3, None)) is None
    stopping = job_records.detail(status="RUNNING", stopping="keep", progress=job_records.progress(3, 12))
    assert jobs_head.head(stopping)["progress"] == "stopping, and keeping what it learned"
    children = [{**dict(job_records.job(status=status)), "options": {}, "result": {}} for status in ("SUCCEEDED", "SUCCEEDED", "QUEUED")]
    assert "2 of 3 runs done" in jobs_head.head(job_records.detail(kind="sweep", children=children))["facts"]
    reached = job_records.detail(status="SUCCEEDED", attempt=2, result={"train_loss": 1.23456, "eval_loss": 2.0, "tokens": 12345})
    assert jobs_head.head(reached)["readings"] == [
        ("loss on training rows", "1.235"),
        ("loss on held-out rows", "2.000"),
        ("tokens read", "12,345"),
    ]
    assert "attempt 2" in jobs_head.head(reached)["facts"]


def test_a_failed_job_offers_the_options_that_would_help_with_their_old_values() -> None:
    failed = job_records.detail(status="FAILED", config={"lora": {"r": 8}}, remedy={"lora.r": 4}, progress=job_records.progress(2, 9))
    offered = jobs_head.actions(failed)
    assert offered["remedy"] == [("lora.r", "8", "4")] and [act for act, _, _ in offered["actions"]] == ["remedy", "retry"]
    cancelled = job_records.detail(status="CANCELLED", remedy={"lora.r": 4})
    assert jobs_head.actions(cancelled)["remedy"] == [] and [act for act, _, _ in jobs_head.actions(cancelled)["actions"]] == ["retry"]


def test_two_places_work_side_by_side_and_a_job_waits_for_the_one_before_it(db: Database) -> None:
    # red when two cards halve nothing, or a job begins before the one that it is to follow has ended
    ran(db, "old", steps=10, seconds=20)
    first = submit(db, "first")
    submit(db, "second", planned_steps=5)
    submit(db, "third")
    submit(db, "after", after_id=first, planned_steps=5)
    with db.read() as session:
        names = {job.id: job.name for job in session.query(JobRow)}
        spans = {names[job_id]: (span.starts_in_s, span.ends_in_s) for job_id, span in forecast(session, 2).items()}
    assert spans == {"first": (0.0, 20.0), "second": (0.0, 10.0), "third": (10.0, 30.0), "after": (20.0, 30.0)}
    assert [_places_are_free_in(ends, 2) for ends in ([], [4.0], [4.0, None], [1.0, 2.0, 3.0])] == [
        [0.0, 0.0],
        [0.0, 4.0],
        [4.0, None],
        [2.0, 3.0],
    ]
