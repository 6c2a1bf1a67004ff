"""Brings the tables of a database to this version: a copy first, all or nothing, one process at a time.

Only the order of the revisions is known here; `versions/` holds what each of them changes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from studio import processes
from studio.db.session import Database
from studio.errors import StudioError
from studio.running import running_in

FOLDER = Path(__file__).resolve().parent
FIRST = "0004"  # the oldest revision that can still be opened
HEAD = "0008"  # the last revision; a test compares it with `versions/`
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
POSTGRES_LOCK = 7_210_437  # any number that no other program uses for an advisory lock on this database


def migrate(db: Database) -> None:
    """Apply what is missing. Raises StudioError for a database that is damaged, too old or too new, or not ours."""
    with _refusing_damage(db):
        if current(db) == HEAD:
            return  # without importing alembic, which takes half a second
        with db.engine.connect().execution_options(studio_write=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": POSTGRES_LOCK})
            found = _revision(connection)
            if found == HEAD:
                return  # another process was faster
            if found is not None:
                check(found, f"The database {_name(db)}")
                _refuse_while_used(connection, db.home)
                _copy(db)
            _upgrade(connection, db.home)


def current(db: Database) -> str | None:
    """The revision of the database; None for a new one."""
    with db.engine.connect() as connection:
        return _revision(connection)


def check(revision: str, subject: str) -> None:
    """Raises StudioError for a revision that this version can't open. `subject` is of that revision, for the message."""
    if FIRST <= revision <= HEAD:
        return
    if revision < FIRST:
        raise StudioError(
            f"{subject} was written by an Adapter Studio too old for this one (revision {revision}; {FIRST} is the oldest it opens).",
            f"Open it once with a version that writes revision {FIRST}, then with this one.",
        )
    raise StudioError(
        f"{subject} was written by a newer Adapter Studio (revision {revision}; this one knows {HEAD}).",
        "Install the newer version again, or set STUDIO_HOME to another folder.",
    )


def damaged(name: str, why: object) -> StudioError:
    return StudioError(
        f"The database {name} is damaged ({why}).",
        "Restore a backup with `studio restore FILE`, which keeps this one beside it, or set STUDIO_HOME to another folder.",
    )


@contextmanager
def _refusing_damage(db: Database) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, DBAPIError) as exc:
        cause = getattr(exc, "orig", None) or exc
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF not in DAMAGED:
            raise
        raise damaged(_name(db), cause) from None


def _name(db: Database) -> str:
    return db.url.rpartition("/")[2]


def _revision(connection: Connection) -> str | None:
    tables = inspect(connection).get_table_names()
    found: str | None = None
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables and found is None and connection.dialect.name == "sqlite":
        name = Path(str(connection.engine.url.database)).name
        raise StudioError(
            f"The database {name} is not a studio's: its tables have no revision.",
            "Move that file away, or set STUDIO_HOME to another folder.",
        )
    return found


def _refuse_while_used(connection: Connection, home: Path) -> None:
    """A page or a worker of the older version would go on with what it knows of the tables."""
    studio = running_in(home)
    if studio is not None and studio.pid not in processes.ancestors():  # else it is the one that started this process
        raise StudioError(
            f"An older Adapter Studio runs in {home}, and this one has to change the database first.",
            "Stop it (Ctrl-C where it was started), and start it again.",
        )
    query = text("SELECT name, owner FROM jobs WHERE status = 'RUNNING' AND owner IS NOT NULL")
    if busy := [name for name, owner in connection.execute(query) if not processes.is_gone(owner)]:
        raise StudioError(
            f"Job {busy[0]} still runs in an older Adapter Studio, and this one has to change the database first.",
            "Wait until the job has ended, or stop that studio.",
        )


def _copy(db: Database) -> None:
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


def _upgrade(connection: Connection, home: Path, to: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = connection
    config.attributes["home"] = home
    command.upgrade(config, to)
