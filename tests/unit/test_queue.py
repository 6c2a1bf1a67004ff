"""The doorbell: nothing but a job's ID in it, nothing unpickled from it, and no harm when it breaks."""

from __future__ import annotations

import pickle
import sqlite3
import stat
from pathlib import Path

import pytest

from jobs import queue


def messages(path: Path) -> list[tuple[str, bytes]]:
    connection = sqlite3.connect(path)
    try:
        return [(name, bytes(data)) for name, data in connection.execute("SELECT queue, data FROM task ORDER BY id")]
    finally:
        connection.close()


def test_a_message_is_the_id_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue.ring(path, "gpu", "abc")
    queue.ring(path, "light", "xyz")
    assert messages(path) == [("gpu", b'"abc"'), ("light", b'"xyz"')]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_a_worker_gets_the_task_with_the_id(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    huey = queue.open_queue(path, "gpu")
    heard = []

    def run_job(job_id: str) -> None:
        heard.append(job_id)

    run_job.__module__ = "jobs.tasks"
    huey.task()(run_job)
    queue.ring(path, "gpu", "abc")
    huey.execute(huey.dequeue())
    assert heard == ["abc"]


class Exploding:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("data", [pickle.dumps(Exploding()), b"{}", b"[1]", b"\xff", b""])
def test_a_strange_message_is_an_error_and_never_code(tmp_path: Path, data: bytes) -> None:
    huey = queue.open_queue(tmp_path / "queue.db", "gpu")
    huey.storage.enqueue(data)
    with pytest.raises(ValueError):
        huey.dequeue()


def test_a_bell_that_cannot_ring_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"this is no database" * 100)
    queue.ring(path, "gpu", "abc")


def test_a_damaged_queue_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_bytes(b"this is no database" * 100)
    huey = queue.open_or_replace(path, "gpu")
    assert huey.pending_count() == 0
    queue.ring(path, "gpu", "abc")
    assert huey.pending_count() == 1
