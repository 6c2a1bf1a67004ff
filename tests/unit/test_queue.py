"""Notifications of workers: nothing of a job in them, nothing read from them, and no harm when the file breaks."""

from __future__ import annotations

import pickle
import sqlite3
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from huey import SqliteHuey

from jobs import queue, tasks


def messages(path: Path) -> list[tuple[str, bytes]]:
    connection = sqlite3.connect(path)
    try:
        return [(name, bytes(data)) for name, data in connection.execute("SELECT queue, data FROM task ORDER BY id")]
    finally:
        connection.close()


def test_a_message_says_nothing_of_a_job(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue.notify(path, "gpu")
    queue.notify(path, "light")
    assert messages(path) == [("gpu", queue.NOTIFICATION), ("light", queue.NOTIFICATION)]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def opened_with_task(path: Path) -> tuple[SqliteHuey, list[str]]:
    """The queue as a worker has it, and what its task has done."""
    huey, done = queue.open_queue(path, "gpu"), list[str]()

    def run_jobs() -> None:
        done.append("looked")

    run_jobs.__module__ = "jobs.tasks"
    huey.task()(run_jobs)
    return huey, done


def test_a_notification_makes_a_worker_look_once(tmp_path: Path) -> None:
    huey, done = opened_with_task(tmp_path / "queue.db")
    queue.notify(tmp_path / "queue.db", "gpu")
    queue.notify(tmp_path / "queue.db", "light")
    huey.execute(huey.dequeue())
    assert done == ["looked"] and huey.dequeue() is None


def test_the_task_of_a_worker_is_the_one_that_is_notified(tmp_path: Path) -> None:
    huey, looks = queue.open_queue(tmp_path / "queue.db", "gpu"), list[str]()
    runner = SimpleNamespace(run=lambda: looks.append("looked"))
    tasks.register(huey, runner)  # type: ignore[arg-type]
    queue.notify(tmp_path / "queue.db", "gpu")
    huey.execute(huey.dequeue())
    assert looks == ["looked"]


class Exploding:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("data", [pickle.dumps(Exploding()), b"{}", b'"some-job"', b"\xff", b""])
def test_whatever_lies_in_the_file_is_never_code_and_at_most_a_look(tmp_path: Path, data: bytes) -> None:
    huey, done = opened_with_task(tmp_path / "queue.db")
    huey.storage.enqueue(data)
    huey.execute(huey.dequeue())
    assert done == ["looked"]


def test_a_queue_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"this is no database" * 100)
    queue.notify(path, "gpu")


def test_a_damaged_queue_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"this is no database" * 100)
    huey = queue.open_or_replace(path, "gpu")
    assert huey.pending_count() == 0
    queue.notify(path, "gpu")
    assert huey.pending_count() == 1
