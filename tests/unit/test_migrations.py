"""The store comes up to date by itself, for several processes at once, and refuses what a newer version has written."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from studio.db import migrations
from studio.db.models import Base
from studio.db.session import Database
from studio.errors import StudioError
from studio.settings import Settings


def test_migrations_give_the_tables_that_the_models_describe(settings: Settings) -> None:
    db = Database(settings.db_url)
    migrations.migrate(db)
    with db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    db.dispose()


def test_the_last_revision_is_the_one_that_is_checked_for() -> None:
    names = sorted(path.name.split("_")[0] for path in (migrations.FOLDER / "versions").glob("[0-9]*.py"))
    assert names[-1] == migrations.HEAD


def test_several_processes_start_at_once(settings: Settings) -> None:
    code = f"from studio.db import migrations, session; migrations.migrate(session.Database({settings.db_url!r}))"
    starting = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate(timeout=120)[1] for process in starting] == [b""] * 4
    db = Database(settings.db_url)
    assert migrations.current(db) == migrations.HEAD
    db.dispose()


def test_a_newer_database_is_refused_in_one_line(settings: Settings) -> None:
    db = Database(settings.db_url)
    migrations.migrate(db)
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StudioError, match="newer Adapter Studio") as caught:
        migrations.migrate(db)
    assert "\n" not in str(caught.value) and "STUDIO_HOME" in caught.value.fix
    db.dispose()


def test_an_older_database_is_copied_before_it_changes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    db = Database(settings.db_url)
    migrations.migrate(db)
    with db.write() as session:
        session.execute(text("INSERT INTO api_keys (id, name, sha256, created_at) VALUES ('k', 'mine', 'x', 0)"))
    monkeypatch.setattr(migrations, "HEAD", "9000")  # as if a revision had been added; alembic itself has nothing to do
    migrations.migrate(db)
    db.dispose()
    copy = settings.home / "studio.db.before-9000"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    connection = sqlite3.connect(copy)
    assert connection.execute("SELECT name FROM api_keys").fetchall() == [("mine",)]
    connection.close()


def test_the_store_is_readable_by_its_owner_only(settings: Settings) -> None:
    db = Database(settings.db_url)
    migrations.migrate(db)
    db.dispose()
    assert stat.S_IMODE((settings.home / "studio.db").stat().st_mode) == 0o600
