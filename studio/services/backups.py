"""The whole studio in one file, and back: database, datasets, adapters and runs, without checkpoints and base models.

A restore checks everything in a folder of its own first, and keeps what was there before beside it. Knows no process:
whoever calls `restore` makes sure that no studio runs here.
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
from typing import Any

from studio import processes
from studio.db import migrations
from studio.db.session import database as open_database
from studio.errors import StudioError
from studio.services.archives import Archive, add_file, open_archive, refused, write_archive
from studio.services.models import STARTER, STARTER_FOLDER
from studio.services.restoring import FOLDERS, PLACE_PREFIX, move, replacing, undo
from studio.settings import Settings

FORMAT = "adapter-studio-backup/1"
CARD, DATABASE = "backup.json", "studio.db"
LEFT_OUT = ("checkpoints",)  # of a run: large, and of use to a training that goes on only
PATH_COLUMNS = (("jobs", "run_dir"), ("adapters", "path"))  # all of them inside STUDIO_HOME
MODEL_PATH = "model_name_or_path"


def backup(settings: Settings, to: Path) -> dict[str, Any]:
    """Write the backup, also while a studio runs: {"path", "bytes", "files", "models": [base models that are not in it]}."""
    source = _database(settings)
    if not source.exists():
        raise StudioError(f"There is no studio in {settings.home} yet.", "Set STUDIO_HOME to the one to keep.")
    settings.make_folders()
    files = 0
    with tempfile.TemporaryDirectory(dir=settings.cache) as place:
        copy = Path(place) / DATABASE
        _copy(source, copy)

        def fill(archive: zipfile.ZipFile) -> None:
            nonlocal files
            add_file(archive, copy, DATABASE)
            for path in _files(settings.home):
                try:
                    add_file(archive, path, path.relative_to(settings.home).as_posix())
                    files += 1
                except FileNotFoundError:  # a run that tidies up while we look
                    continue
            card = {"format": FORMAT, "home": str(settings.home), "revision": migrations.HEAD, "written_at": time.time(), "files": files}
            archive.writestr(CARD, json.dumps(card, indent=1))

        write_archive(to, fill)
        os.chmod(to, 0o600)  # conversations and hashes of keys
        models = _models(copy)
    return {"path": str(to.absolute()), "bytes": to.stat().st_size, "files": files, "models": models}


def restore(settings: Settings, source: Path) -> dict[str, Any]:
    """Replace this studio by a backup: {"home", "files", "models": [missing here], "before": folder of what was there, or None}.

    Raises StudioError, and changes nothing, for a file that no studio has written or that is not whole.
    """
    database = _database(settings)
    settings.make_folders()
    undo(settings)  # of one before, that was cut short
    with (
        open_archive(source, settings.home) as archive,
        tempfile.TemporaryDirectory(dir=settings.home, prefix=PLACE_PREFIX) as place,
    ):
        card = _card(archive)
        fresh = Path(place)
        names = [name for name in archive.names if name.split("/")[0] in FOLDERS]
        for name in (DATABASE, *names):
            archive.extract(name, fresh / name)
        if len(names) != card["files"]:
            raise refused(source, f"it holds {len(names)} of {card['files']} files")
        os.chmod(fresh / DATABASE, 0o600)
        _check_database(source, fresh / DATABASE)
        _refuse_while_jobs_run(database)
        _move_paths(source, fresh, Path(card["home"]), settings.home)
        with replacing(settings, database) as before:
            for folder in FOLDERS:
                (fresh / folder).mkdir(exist_ok=True)
                (fresh / folder).rename(settings.home / folder)
            move(fresh / DATABASE, database)
    db = open_database(settings.db_url, settings.sqlite_journal)
    db.dispose()  # connections of this process are to the database that was here before
    migrations.migrate(db)
    missing = [model["name"] for model in _models(database) if not Path(model["path"]).is_dir()]
    return {"home": str(settings.home), "files": len(names), "models": missing, "before": str(before) if before else None}


def _refuse_while_jobs_run(database: Path) -> None:
    """A training that was started without a studio would write into the restored one."""
    if not database.exists():
        return
    with closing(sqlite3.connect(database)) as connection:
        try:
            owners = connection.execute("SELECT name, owner FROM jobs WHERE status = 'RUNNING' AND owner IS NOT NULL").fetchall()
        except sqlite3.DatabaseError:  # damaged, or of a stranger: a reason to restore, not against it
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
        old.backup(new)
        new.execute("PRAGMA journal_mode=DELETE")


def _files(home: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((home / folder).rglob("*")):
            inside = path.relative_to(home).parts
            if path.is_file() and not path.is_symlink() and not any(part in LEFT_OUT or ".part" in part for part in inside):
                yield path


def _models(database: Path) -> list[dict[str, str]]:
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT name, path FROM base_models ORDER BY name").fetchall()
    return [{"name": name, "path": path} for name, path in rows]


def _card(archive: Archive) -> dict[str, Any]:
    card = archive.json(CARD)
    if not isinstance(card, dict) or card.get("format") != FORMAT or DATABASE not in archive.names:
        raise refused(archive.path, "it is no backup of a studio")
    if not isinstance(card.get("home"), str) or not isinstance(card.get("files"), int):
        raise refused(archive.path, f"{CARD} is not whole")
    return card


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
    if revision is None or revision[0] not in migrations.known():
        raise StudioError(f"{source.name} was written by a newer Adapter Studio.", "Install the newer version first.")


def _move_paths(source: Path, fresh: Path, old: Path, home: Path) -> None:
    """Paths of the home it was written in become paths of this one; a file elsewhere is nothing that a studio keeps."""

    def moved(path: str) -> str:
        try:
            inside = Path(path).relative_to(old)
        except ValueError:
            raise refused(source, f"its database names a folder outside the studio: {path[:80]!a}") from None
        if ".." in inside.parts or len(inside.parts) < 2 or inside.parts[0] not in FOLDERS:
            raise refused(source, f"its database names a folder outside the studio: {path[:80]!a}")
        return str(home / inside)

    def moved_model(path: str) -> str:
        inside = Path(path)
        return str(home / inside.relative_to(old)) if inside.is_relative_to(old) and ".." not in inside.parts else path

    def moved_config(config: Any) -> Any:
        if not isinstance(config, dict) or not config.get(MODEL_PATH):
            return config
        is_starter = config.get("base_model") == STARTER
        return {**config, MODEL_PATH: str(STARTER_FOLDER) if is_starter else moved_model(str(config[MODEL_PATH]))}

    with closing(sqlite3.connect(fresh / DATABASE)) as connection, connection:
        for table, column in PATH_COLUMNS:
            for identity, path in connection.execute(f"SELECT id, {column} FROM {table} WHERE {column} != ''").fetchall():
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", (moved(path), identity))
        for identity, path in connection.execute("SELECT id, path FROM base_models").fetchall():
            connection.execute("UPDATE base_models SET path = ? WHERE id = ?", (moved_model(path), identity))
        for identity, text in connection.execute("SELECT id, config FROM jobs").fetchall():
            connection.execute("UPDATE jobs SET config = ? WHERE id = ?", (json.dumps(moved_config(json.loads(text))), identity))
    for file in (fresh / "runs").glob("*/config.json"):
        file.write_text(json.dumps(moved_config(json.loads(file.read_text(encoding="utf-8"))), indent=1), encoding="utf-8")
