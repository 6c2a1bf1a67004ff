"""What people see, as frozen records: services return them; command line, HTTP and page show them. No behaviour."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict


class Record(PydanticModel):
    """A frozen record that refuses unknown fields. Times are seconds since the epoch (UTC), durations seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# jobs


class JobStatus(StrEnum):
    """Where a job stands. Only studio.db.lifecycle moves it."""

    QUEUED = "QUEUED"  # waits for its turn, its device or the job before it
    RUNNING = "RUNNING"  # a worker holds its lease
    PAUSED = "PAUSED"  # stopped by a person at a checkpoint; resumes from there
    SUCCEEDED = "SUCCEEDED"  # this attempt's result.json is there
    FAILED = "FAILED"  # ended with a reason and, where one is known, a fix
    CANCELLED = "CANCELLED"  # ended by a person


# datasets


# base models


# adapters and exports


# chat


# comparisons, judgements, ratings


# compression


# the studio itself: doctor, status, storage, keys
