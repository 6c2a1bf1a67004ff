"""Notifications for workers: two huey queues in queue.db. A notification only says "look for work"; the rows of jobs say which.

So it may be lost or doubled without harm, and a queue file that can't be written is no reason for a submit to fail.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

TASK = "jobs.tasks.run_jobs"  # the one task there is; jobs.worker registers it
NOTIFICATION = b"look"

logger = logging.getLogger(__name__)


class NotificationSerializer(Serializer):
    """Every message is the same; whatever lies in the file, nothing of it is read. huey's own serializer would unpickle it."""

    def _serialize(self, data: Any) -> bytes:
        return NOTIFICATION

    def _deserialize(self, data: Any) -> Message:
        return _message()


def _message() -> Message:
    return Message(id=str(uuid.uuid4()), name=TASK, retries=0, retry_delay=0, args=(), kwargs={})


def notify(path: Path, name: str) -> None:
    """Have a worker of queue `name` look for work. Never fails: workers look at the rows every second anyway."""
    try:
        huey = _opened(path, name)
        huey.storage.enqueue(huey.serializer.serialize(_message()))
    except sqlite3.Error as exc:
        logger.warning("The workers of queue %s could not be notified (%s); they find the job by themselves.", name, exc)


def open_queue(path: Path, name: str) -> SqliteHuey:
    """The queue `name` in the file `path`, which is made readable by its owner only. Raises sqlite3.Error when it can't be used."""
    path.touch(mode=0o600)
    os.chmod(path, 0o600)
    return SqliteHuey(name, filename=str(path), results=False, serializer=NotificationSerializer(), timeout=10)


def open_or_replace(path: Path, name: str) -> SqliteHuey:
    """As `open_queue`; a file that is no database any more is replaced, since its messages can be done without."""
    try:
        huey = open_queue(path, name)
        huey.pending_count()
        return huey
    except sqlite3.OperationalError:  # locked, or a disk that can't be written
        raise
    except sqlite3.DatabaseError as exc:
        logger.warning("%s was damaged (%s) and is replaced; no job is lost by that.", path, exc)
        for file in (path, *path.parent.glob(path.name + "-*")):
            file.unlink(missing_ok=True)
        return open_queue(path, name)


@lru_cache(maxsize=16)
def _opened(path: Path, name: str) -> SqliteHuey:
    return open_queue(path, name)
