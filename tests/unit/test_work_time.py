"""How long a job has worked: its attempts, neither the queue nor pauses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from studio.db.models import JobEventRow, JobRow
from studio.db.session import Database
from studio.services.work_time import seconds_of_work, worked
from studio.settings import Settings
from tests.runs import open_store

PAUSED_TWICE = [("started", 10.0), ("paused", 20.0), ("started", 100.0), ("notice", 105.0), ("lost", 110.0), ("started", 200.0)]


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ([], 0.0),
        (PAUSED_TWICE, 10 + 10 + 100),
        ([*PAUSED_TWICE, ("succeeded", 230.0)], 10 + 10 + 30),
        # memory ran out: the attempt ends with the notice of the smaller batch, and the next one waits its turn
        ([("started", 0.0), ("notice", 30.0), ("started", 500.0), ("failed", 510.0)], 30 + 10),
        # set aside and cancelled while it waited
        ([("started", 0.0), ("released", 5.0), ("paused", 50.0), ("cancelled", 90.0)], 5.0),
    ],
)
def test_only_attempts_count(events: list[tuple[str, float]], seconds: float) -> None:
    assert worked(events, now=300.0) == seconds


def test_a_job_that_was_paused_worked_less_than_it_took_and_a_sweep_as_long_as_its_runs(db: Database) -> None:
    with db.write() as session:
        session.add(JobRow(id="sweep", kind="sweep", name="s", status="SUCCEEDED", started_at=0.0, ended_at=1000.0))
        ended = {"kind": "train", "status": "SUCCEEDED", "parent_id": "sweep", "ended_at": 1000.0}
        session.add(JobRow(id="once", name="a", attempt=1, started_at=960.0, **ended))
        session.add(JobRow(id="twice", name="b", attempt=2, started_at=0.0, **ended))
        session.add(JobRow(id="new", kind="train", name="c"))
        session.flush()
        for kind, at in (("started", 0.0), ("paused", 20.0), ("started", 990.0), ("succeeded", 1000.0)):
            session.add(JobEventRow(job_id="twice", attempt=1, at=at, kind=kind))
        session.flush()
        jobs = [session.get_one(JobRow, job) for job in ("sweep", "once", "twice", "new")]
        assert seconds_of_work(session, jobs) == {"sweep": 70.0, "once": 40.0, "twice": 30.0, "new": None}
