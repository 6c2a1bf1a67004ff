"""Disk per noun, and deleting what nothing refers to: what a row, a process or the last hour knows stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.db.models import AdapterRow, JobRow
from studio.services import Studio
from studio.services.storage import YOUNG_S
from studio.settings import Settings


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings)
    yield opened
    opened.db.dispose()


def old(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"12345")
    for path in (folder / "file", folder):
        os.utime(path, (time.time() - 2 * YOUNG_S,) * 2)
    return folder


def test_only_what_nothing_refers_to_is_deleted(studio: Studio, tmp_path: Path) -> None:
    settings = studio.settings
    lost = [old(settings.datasets / "gone"), old(settings.runs / "gone"), old(settings.adapters / "gone"), old(settings.cache / "upload")]
    kept = [old(settings.runs / "failed" / "checkpoints"), old(settings.adapters / "merge"), old(settings.exports / "out")]
    done = old(settings.runs / "done" / "checkpoints")
    (settings.datasets / "new").mkdir()  # its row may be on its way
    outside = old(tmp_path / "outside")
    (settings.cache / "link").symlink_to(outside)
    with studio.db.write() as session:
        for name, status in (("done", "SUCCEEDED"), ("failed", "FAILED")):
            session.add(JobRow(id=name, kind="train", name=name, status=status, run_dir=str(settings.runs / name)))
        session.add(JobRow(id="export", kind="export", name="out", status="SUCCEEDED", config={"to": str(settings.exports / "out")}))
        session.add(AdapterRow(name="merge", base_model="starter", method="", path=str(settings.adapters / "merge"), bytes=5))
    working = old(settings.runs / "by-hand")
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=working, stdin=subprocess.PIPE) as process:
        found = studio.storage.show()
        assert {one.path for one in found.unused} == {str(path) for path in [*lost, done]}
        assert found.unused_bytes == 25
        assert next(use for use in found.nouns if use.noun == "runs").bytes == 20
        cleaned = studio.storage.clean()
        process.communicate(b"\n")
    assert (cleaned.freed_bytes, len(cleaned.deleted), cleaned.kept) == (25, 5, [])
    assert not any(path.exists() for path in [*lost, done])
    assert all((path / "file").exists() for path in [*kept, outside, working]) and (settings.datasets / "new").exists()
    assert not list(settings.home.rglob(".gone-*"))
