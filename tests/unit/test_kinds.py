"""The registry of kinds of jobs is complete: each has a queue and what runs it, and the worker finds both."""

from __future__ import annotations

import importlib.util

import pytest

from jobs import kinds
from jobs.attempts import ATTEMPTS, _light_job
from jobs.kinds import ENTRIES, KINDS, KindOfJob
from studio.errors import StudioError
from studio.records import JobKind, QueueName


def test_every_kind_has_one_entry() -> None:
    assert [entry.kind for entry in ENTRIES] == list(JobKind)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.kind)
def test_what_runs_a_kind_is_there(entry: KindOfJob) -> None:
    # red when a kind has no queue, nothing that runs it, or two things that do
    assert entry.title and entry.title == kinds.title(entry.kind)
    if entry.queue is None:
        assert not entry.program and not entry.function and kinds.queue_of(entry.kind) == ""
        return
    assert kinds.queue_of(entry.kind) == entry.queue
    assert bool(entry.program) != bool(entry.function)
    assert (entry.kind in ATTEMPTS) == bool(entry.program) == (entry.queue is QueueName.GPU)
    if entry.program:
        assert importlib.util.find_spec(entry.program) is not None
    else:
        assert callable(_light_job(entry.kind))


def test_a_kind_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(StudioError, match="no jobs of kind 'dream'"):
        _light_job("dream")
    assert kinds.title("dream") == "dream" and "dream" not in KINDS
    assert kinds.followers() == (JobKind.REPORT,)
