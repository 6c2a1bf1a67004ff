"""Brings the tables of a database to this version: a copy first, all or nothing, one process at a time.

Knows the order of the revisions only; what each changes stands in `versions/`.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from studio.db.session import Database
from studio.errors import StudioError

FOLDER = Path(__file__).resolve().parent
HEAD = "0004"  # the last revision; a test holds it to `versions/`
POSTGRES_LOCK = 7_210_437  # any number that no other program uses for an advisory lock on this database


def migrate(db: Database) -> None:
    """Apply what is missing. Raises StudioError for a database that a newer Adapter Studio has written."""
    if current(db) == HEAD:
        return  # without importing alembic, which takes half a second
    with db.engine.connect().execution_options(studio_write=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": POSTGRES_LOCK})
        found = _revision(connection)
        if found == HEAD:
            return  # another process was faster
        if found is not None:
            _refuse_newer(found, db.url)
            _copy(db, found)
        _upgrade(connection)


def current(db: Database) -> str | None:
    """The revision of the database; None for a new one."""
    with db.engine.connect() as connection:
        return _revision(connection)


def known() -> set[str]:
    """The revisions that this version can bring up to date."""
    return {path.name.split("_")[0] for path in (FOLDER / "versions").glob("[0-9]*.py")}


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _refuse_newer(found: str, url: str) -> None:
    if found not in known():
        raise StudioError(
            f"The database {url.rpartition('/')[2]} was written by a newer Adapter Studio (revision {found}, this one knows {HEAD}).",
            "Install the newer version again, or set STUDIO_HOME to another folder.",
        )


def _copy(db: Database, found: str) -> None:
    """Keep the database as it is in a file beside it, through SQLite's backup API."""
    if db.path is None:
        return
    target = db.path.with_name(f"{db.path.name}.before-{HEAD}")
    if target.exists():
        return  # of an earlier try; the older copy is the better one
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    source, copy = sqlite3.connect(db.path), sqlite3.connect(part)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()
    os.replace(part, target)


def _upgrade(connection: Connection, to: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
