"""The doorbell: two huey queues in queue.db. A message says only "look at this job"; the row in the database is the truth.

So a message may be lost or doubled without harm, and a bell that can't ring is no reason for a submit to fail.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

QueueName = Literal["gpu", "light"]
NAMES: tuple[QueueName, ...] = ("gpu", "light")
TASK = "jobs.tasks.run_job"  # the one task there is; jobs.worker registers it

logger = logging.getLogger(__name__)


class JobIdSerializer(Serializer):
    """A message is the job's ID as JSON; huey's own serializer would unpickle whatever lies in the file."""

    def _serialize(self, data: Any) -> bytes:
        (job_id,) = data.args
        return json.dumps(job_id).encode()

    def _deserialize(self, data: Any) -> Message:
        job_id = json.loads(bytes(data))
        if not isinstance(job_id, str):
            raise ValueError("a message of the queue is not a job's ID")
        return _message(job_id)


def _message(job_id: str) -> Message:
    return Message(id=str(uuid.uuid4()), name=TASK, retries=0, retry_delay=0, args=(job_id,), kwargs={})


def ring(path: Path, name: str, job_id: str) -> None:
    """Wake a worker of queue `name` for this job. Never fails: workers look at the rows every second anyway."""
    try:
        huey = _bell(path, name)
        huey.storage.enqueue(huey.serializer.serialize(_message(job_id)))
    except sqlite3.Error as exc:
        logger.warning("The bell for job %s could not be rung (%s); a worker will find it by itself.", job_id, exc)


def open_queue(path: Path, name: str) -> SqliteHuey:
    """The queue `name` in the file `path`, which is made readable by its owner only. Raises sqlite3.Error when it can't be used."""
    path.touch(mode=0o600)
    os.chmod(path, 0o600)
    return SqliteHuey(name, filename=str(path), results=False, serializer=JobIdSerializer(), timeout=10)


def open_or_replace(path: Path, name: str) -> SqliteHuey:
    """As `open_queue`; a file that is no database any more is replaced, since its messages can be done without."""
    try:
        huey = open_queue(path, name)
        huey.pending_count()
        return huey
    except sqlite3.OperationalError:  # locked, or a disk that can't be written
        raise
    except sqlite3.DatabaseError as exc:
        logger.warning("%s was damaged (%s) and is made anew; no job is lost by that.", path, exc)
        for file in (path, *path.parent.glob(path.name + "-*")):
            file.unlink(missing_ok=True)
        return open_queue(path, name)


@lru_cache(maxsize=16)
def _bell(path: Path, name: str) -> SqliteHuey:
    return open_queue(path, name)
