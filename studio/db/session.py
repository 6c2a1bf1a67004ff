"""Engine, pragmas and transactions. `read()` for looking, `write()` for anything that changes a row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

from studio.db.columns import use_home
from studio.homepaths import HomePaths

BUSY_S = 30.0  # how long a statement waits for another process's transaction
PRIVATE = 0o600  # a database holds rows and keys


class Database:
    """One database; safe to share between threads, not across fork. Its path columns are relative to `home`.

    `home` may be left out for a SQLite file that lies in STUDIO_HOME itself.
    """

    def __init__(self, url: str, journal: str = "WAL", home: Path | None = None) -> None:
        self.url = url
        self.path = None
        if url.startswith("sqlite"):
            self.path = Path(url.removeprefix("sqlite:///"))
        place = home or (self.path and self.path.parent)
        if place is None:
            raise ValueError("A server's database does not say where STUDIO_HOME is: name it.")
        self.home = place.absolute()
        self.busy_s = BUSY_S
        self.engine = _engine(url, self.path, journal, lambda: self.busy_s)
        use_home(self.engine, HomePaths(self.home))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for looking; its records stay usable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that takes SQLite's write lock at its start, so read-then-write can't be overtaken."""
        with Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"studio_write": True})
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    def wait_at_most(self, busy_s: float) -> None:
        """From now on, where somebody waits for the answer: a database that another program holds is told soon."""
        self.busy_s = busy_s
        self.engine.dispose()  # connections know the limit that they were opened with

    def dispose(self) -> None:
        self.engine.dispose()


def _engine(url: str, path: Path | None, journal: str, busy_s: Callable[[], float]) -> Engine:
    if path is None:
        return create_engine(url, pool_pre_ping=True, pool_size=40)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=PRIVATE)
    os.chmod(path, PRIVATE)
    # gradio serves from 40 threads: the default pool of 5 + 10 would run dry
    engine = create_engine(url, pool_size=48, max_overflow=64, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        for pragma in (f"journal_mode={journal}", "synchronous=NORMAL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute(f"PRAGMA busy_timeout={round(1000 * busy_s())}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Any) -> None:
        is_writing = connection.get_execution_options().get("studio_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine


@lru_cache(maxsize=8)
def database(url: str, journal: str = "WAL", home: Path | None = None) -> Database:
    """The process's one Database for `url`."""
    return Database(url, journal, home)
