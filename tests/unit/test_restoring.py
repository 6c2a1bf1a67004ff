"""A restore that is killed at any of its moves leaves the studio as it was, once the next start has looked; or it is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import filelock
import pytest

from studio.errors import StudioError
from studio.services import restoring
from studio.settings import Settings


def fill(settings: Settings) -> Path:
    """A studio with a database and runs, and no adapters."""
    database = settings.home / "studio.db"
    database.write_text("old")
    (settings.home / "studio.db-wal").write_text("old log")
    (settings.runs / "one").mkdir()
    (settings.runs / "one" / "file").write_text("old run")
    return database


def contents(home: Path) -> dict[str, str]:
    return {str(path.relative_to(home)): path.read_text() for path in home.rglob("*") if path.is_file() and path.name != "studio.lock"}


def replace(settings: Settings, database: Path) -> None:
    """What `restore` does with what it has unpacked."""
    fresh = settings.home / ".restore-test"
    for folder in restoring.FOLDERS:
        (fresh / folder).mkdir(parents=True)
    (fresh / "adapters" / "new").write_text("new adapter")
    (fresh / "studio.db").write_text("new")
    with restoring.replacing(settings, database):
        for folder in restoring.FOLDERS:
            (fresh / folder).rename(settings.home / folder)
        restoring.move(fresh / "studio.db", database)


def killed_at(settings: Settings, database: Path, number: int) -> bool:
    """Whether a child that is killed at its `number`-th rename got that far."""
    if (child := os.fork()) == 0:
        moved, left = Path.rename, number

        def rename(self: Path, target: Any) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return moved(self, target)

        Path.rename = rename  # type: ignore[method-assign]
        replace(settings, database)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_restore_that_is_killed_at_any_move_is_undone(settings: Settings) -> None:
    database = fill(settings)
    before = contents(settings.home)
    number = 0
    while killed_at(settings, database, number):
        assert restoring.recover(settings) == restoring.CUT_SHORT
        assert contents(settings.home) == before
        assert not list(settings.home.glob(".restore-*")) and not list(settings.home.glob("before-restore-*"))
        number += 1
    assert number == 3 + len(restoring.FOLDERS) + 1  # database, its log, runs aside; the folders and the database into place
    assert restoring.recover(settings) == "" and database.read_text() == "new"
    assert (settings.adapters / "new").exists() and not (settings.runs / "one").exists()
    (aside,) = settings.home.glob("before-restore-*")
    assert (aside / "studio.db").read_text() == "old" and (aside / "runs" / "one" / "file").exists()


def test_a_restore_that_is_under_way_is_left_alone(settings: Settings) -> None:
    (settings.home / restoring.NOTE).write_text("{}")
    with filelock.FileLock(settings.lock_path), pytest.raises(StudioError, match="under way"):
        restoring.recover(settings)
