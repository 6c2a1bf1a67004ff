"""Paths inside STUDIO_HOME become relative to it, also in rows that name the folder where it lay before."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from jobs.rundir import write_json
from studio.homepaths import HomePaths

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PATHS = (("jobs", "run_dir"), ("adapters", "path"), ("base_models", "path"))
VALUES = (("jobs", "config"), ("jobs", "result"), ("job_events", "data"), ("datasets", "provenance"))
STARTER = "starter"
logger = logging.getLogger(__name__)


def upgrade() -> None:
    connection, home = op.get_bind(), Path(context.config.attributes["home"])
    paths = HomePaths(home, _homes(connection, home), _statics(connection))
    for table, column in PATHS:
        _change(connection, table, column, sa.String(), paths.stored)
    for table, column in VALUES:
        _change(connection, table, column, sa.JSON(), paths.stored_json)
    for file in sorted((home / "runs").glob("*/config.json")):
        _change_file(file, paths)


def _change(connection: sa.Connection, name: str, column: str, kind: Any, change: Any) -> None:
    table = sa.table(name, sa.column("id"), sa.column(column, kind))
    for identity, value in connection.execute(sa.select(table.c.id, table.c[column])).all():
        if (changed := change(value)) != value:
            connection.execute(sa.update(table).where(table.c.id == identity).values({column: changed}))


def _change_file(file: Path, paths: HomePaths) -> None:
    """Whole before and after; a file that an interrupted upgrade has changed already stays as it is."""
    try:
        text = file.read_text(encoding="utf-8")
        if '"$STUDIO_' not in text:
            write_json(file, paths.stored_json(json.loads(text)))
    except ValueError:
        logger.warning("%s is no JSON and stays as it is; its run can't be started again.", file)


def _homes(connection: sa.Connection, home: Path) -> set[str]:
    """Where the home lay when its rows were written.

    A run is HOME/runs/ID, an adapter that was brought or merged HOME/adapters/ID, a model that was downloaded HOME/models/NAME.
    """
    runs, adapters = _pairs(connection, "jobs", "run_dir", "runs"), _pairs(connection, "adapters", "path", "adapters")
    found = {path.removesuffix(ending) for path, ending in (*runs, *adapters) if path.endswith(ending)}
    for path in map(Path, connection.scalars(sa.text("SELECT path FROM base_models"))):
        if path.parent.name == "models" and not path.is_dir() and (home / "models" / path.name).is_dir():
            found.add(str(path.parent.parent))
    return found - {""}


def _pairs(connection: sa.Connection, table: str, column: str, folder: str) -> Iterator[tuple[str, str]]:
    for identity, path in connection.execute(sa.text(f"SELECT id, {column} FROM {table}")):
        yield path, f"/{folder}/{identity}"


def _statics(connection: sa.Connection) -> set[str]:
    """Where the package's files lay: the starter is one of them, and always of that name."""
    jobs = sa.table("jobs", sa.column("config", sa.JSON()))
    found: set[str] = set()
    for config in connection.scalars(sa.select(jobs.c.config)):
        if isinstance(config, dict) and config.get("base_model") == STARTER:
            found.add(str(config.get("model_name_or_path")))
        found |= set(_starters(config))
    ending = f"/{STARTER}"
    return {path.removesuffix(ending) for path in found if path.startswith("/") and path.endswith(ending)}


def _starters(value: Any) -> Iterator[str]:
    """The paths of all models called `starter` in a job's options."""
    if isinstance(value, dict):
        if value.get("name") == STARTER and isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _starters(inner)
