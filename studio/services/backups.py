"""The whole studio in one file, and back: database, datasets, adapters and runs, without checkpoints and base models.

A restore checks everything in a folder of its own first, and keeps what was there before beside it. Whoever calls `restore`
makes sure that no studio runs here.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from studio import processes
from studio.db import migrations
from studio.db.models import BaseModelRow
from studio.db.session import Database
from studio.db.session import database as open_database
from studio.errors import StudioError
from studio.records import Backup, BackupModel, Restoration
from studio.services.archives import Archive, add_file, open_archive, refused, write_archive
from studio.services.restoring import FOLDERS, PLACE_PREFIX, move, replacing, undo
from studio.settings import Settings

FORMAT = "adapter-studio-backup/1"
CARD, DATABASE = "backup.json", "studio.db"
LEFT_OUT = ("checkpoints",)  # of a run: large, and needed only to resume a training


def backup(settings: Settings, to: Path) -> Backup:
    """Write the backup, also while a studio runs."""
    source = _database(settings)
    if not source.exists():
        raise StudioError(f"There is no studio in {settings.home} yet.", "Set STUDIO_HOME to the one to keep.")
    settings.make_folders()
    files = 0
    with tempfile.TemporaryDirectory(dir=settings.cache) as place:
        copy = Path(place) / DATABASE
        _copy(source, copy)
        models = _models(copy, settings.home)

        def fill(archive: zipfile.ZipFile) -> None:
            nonlocal files
            add_file(archive, copy, DATABASE)
            for path in _files(settings.home):
                try:
                    add_file(archive, path, path.relative_to(settings.home).as_posix())
                    files += 1
                except FileNotFoundError:  # a run that tidies up while we look
                    continue
            card = {"format": FORMAT, "home": str(settings.home), "revision": migrations.HEAD, "written_at": time.time()}
            archive.writestr(CARD, json.dumps({**card, "files": files}, indent=1))

        write_archive(to, fill, is_private=True)  # conversations and hashes of keys
    return Backup(path=str(to.absolute()), bytes=to.stat().st_size, files=files, models=models)


def restore(settings: Settings, source: Path) -> Restoration:
    """Replace this studio by a backup.

    Raises StudioError, and changes nothing, for a file that no studio has written or that is not whole.
    """
    database = _database(settings)
    settings.make_folders()
    undo(settings)  # of one before, that was cut short
    with (
        open_archive(source, settings.home) as archive,
        tempfile.TemporaryDirectory(dir=settings.home, prefix=PLACE_PREFIX) as place,
    ):
        expected = _expected_files(archive)
        fresh = Path(place)
        names = [name for name in archive.names if name.split("/")[0] in FOLDERS]
        for name in (DATABASE, *names):
            archive.extract(name, fresh / name)
        if len(names) != expected:
            raise refused(source, f"it holds {len(names)} of {expected} files")
        os.chmod(fresh / DATABASE, 0o600)
        _check_database(source, fresh / DATABASE)
        _refuse_while_jobs_run(database)
        _bring_up_to_date(source, fresh)
        with replacing(settings, database) as before:
            for folder in FOLDERS:
                (fresh / folder).mkdir(exist_ok=True)
                (fresh / folder).rename(settings.home / folder)
            move(fresh / DATABASE, database)
    open_database(settings.db_url, settings.sqlite_journal, settings.home).dispose()  # connections to the former one
    missing = [model.name for model in _models(database, settings.home) if not Path(model.path).is_dir()]
    aside = str(before or "") or None
    return Restoration(home=str(settings.home), files=len(names), models=missing, before=aside)


def _refuse_while_jobs_run(database: Path) -> None:
    """A training that was started without a studio would write into the restored one."""
    if not database.exists():
        return
    with closing(sqlite3.connect(database)) as connection:
        try:
            owners = connection.execute("SELECT name, owner FROM jobs WHERE status = 'RUNNING' AND owner IS NOT NULL").fetchall()
        except sqlite3.DatabaseError:  # damaged, or not a studio's: a reason to restore, not against it
            return
    if busy := [name for name, owner in owners if not processes.is_gone(owner)]:
        raise StudioError(f"Job {busy[0]} runs here.", "Wait until it has ended, or cancel it.")


def _database(settings: Settings) -> Path:
    if not settings.db_url.startswith("sqlite:///"):
        raise StudioError("This studio's database is a server's.", "Back it up with its own tools (pg_dump), and copy STUDIO_HOME.")
    return Path(settings.db_url.removeprefix("sqlite:///"))


def _copy(source: Path, target: Path) -> None:
    """Through SQLite's backup API: whole, whatever is being written meanwhile."""
    target.touch(mode=0o600)
    with closing(sqlite3.connect(source, timeout=30)) as old, closing(sqlite3.connect(target)) as new:
        try:
            old.backup(new)
            if new.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone():
                new.execute("DELETE FROM sessions")  # a login that has ended must not come back with a backup
                new.commit()
            new.execute("PRAGMA journal_mode=DELETE")
            found = str(new.execute("PRAGMA quick_check").fetchone()[0])
        except sqlite3.DatabaseError as exc:
            raise migrations.damaged(source.name, exc) from None
    if found != "ok":
        raise migrations.damaged(source.name, found[:100])


def _files(home: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((home / folder).rglob("*")):
            inside = path.relative_to(home).parts
            if path.is_file() and not path.is_symlink() and not any(part in LEFT_OUT or ".part" in part for part in inside):
                yield path


def _models(database: Path, home: Path) -> list[BackupModel]:
    """The base models that the database lists, with their folders as they are for a studio in `home`."""
    db = Database(f"sqlite:///{database}", "DELETE", home)
    try:
        with db.read() as session:
            rows = session.scalars(select(BaseModelRow).order_by(BaseModelRow.name))
            return [BackupModel(name=row.name, path=row.path) for row in rows]
    finally:
        db.dispose()


def _expected_files(archive: Archive) -> int:
    """How many files the backup says that it holds."""
    card = archive.json(CARD)
    if not isinstance(card, dict) or card.get("format") != FORMAT or DATABASE not in archive.names:
        raise refused(archive.path, "it is no backup of a studio")
    files = card.get("files")
    if not isinstance(files, int):
        raise refused(archive.path, f"{CARD} is not whole")
    return files


def _check_database(source: Path, database: Path) -> None:
    """A whole database of tables and indexes, of a revision that this version knows."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            if (said := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise refused(source, f"its database is damaged ({str(said)[:100]})")
            kinds = {kind for (kind,) in connection.execute("SELECT type FROM sqlite_master")}
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            ids = [str(name) for (name,) in connection.execute("SELECT id FROM datasets UNION ALL SELECT id FROM jobs")]
    except sqlite3.Error as exc:
        raise refused(source, f"its database can't be read ({exc})") from None
    if not kinds <= {"table", "index"}:
        raise refused(source, "its database holds programs of its own")
    if not all(re.fullmatch(r"[a-z0-9]{1,40}", name) for name in ids):  # they name folders
        raise refused(source, "its database holds IDs that no studio gives")
    if revision is None:
        raise refused(source, "its database has no revision")
    migrations.check(str(revision[0]), source.name)


def _bring_up_to_date(source: Path, fresh: Path) -> None:
    """Migrate the database and the runs beside it while nobody uses them. Their paths are relative afterwards."""
    db = Database(f"sqlite:///{fresh / DATABASE}", "DELETE", fresh)
    try:
        migrations.migrate(db)
    except DBAPIError as exc:
        raise refused(source, f"its database can't be read ({exc.orig})") from None
    finally:
        db.dispose()
    with closing(sqlite3.connect(fresh / DATABASE)) as connection:
        runs = connection.execute("SELECT run_dir FROM jobs WHERE run_dir != ''")
        adapters = connection.execute("SELECT path FROM adapters WHERE path != ''")
        for (path,) in (*runs, *adapters):
            _check_path(source, str(path))


def _check_path(source: Path, path: str) -> None:
    """Runs and adapters lie inside the studio, always: else deleting one would delete a stranger's files."""
    folder, *inside = path.split("/")
    if folder not in FOLDERS or not inside or ".." in inside:
        raise refused(source, f"its database names a folder outside the studio: {path[:80]!a}")
