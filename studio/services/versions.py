"""New versions of datasets: rows are written aside, then kept with their rows of the database in one transaction.

Knows nothing of why a version is made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.rundir import fsync_folder
from studio.db.models import DatasetRow, new_id
from studio.db.session import Database
from studio.errors import DatasetError
from studio.services import naming
from studio.settings import Settings

ROWS = "rows.jsonl"


@dataclass
class Draft:
    """A version that is not kept yet. `id` is what its dataset will be called by; `name` None takes `default_name` or the next free."""

    origin: dict[str, Any]  # the dataset that it comes from
    provenance: dict[str, Any]
    name: str | None
    default_name: str
    id: str = field(default_factory=new_id)
    rows: int = 0
    bytes: int = 0
    sha256: str = ""


class VersionShelf:
    """Where versions are written and kept."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings = settings
        self._db = db

    def folder(self, dataset_id: str) -> Path:
        return self._settings.datasets / dataset_id

    def claim(self, name: str | None) -> None:
        """Refuse a name that is taken or no name, before work is done. Raises TakenError or StudioError."""
        if name is not None:
            with self._db.read() as session:
                naming.claim(name, lambda wanted: _is_taken(session, wanted))

    @contextmanager
    def drafting(self) -> Iterator[list[Draft]]:
        """A list for the drafts that are written; what is left of them when something fails is removed."""
        drafts: list[Draft] = []
        try:
            yield drafts
        except BaseException:
            for draft in drafts:
                shutil.rmtree(self.folder(draft.id), ignore_errors=True)
            raise

    def write(self, draft: Draft, lines: Iterable[bytes]) -> Draft:
        """Write a draft's rows. Raises DatasetError when there are none."""
        folder = self.folder(draft.id)
        folder.mkdir(parents=True)
        digest = hashlib.sha256()
        with (folder / f"{ROWS}.part").open("wb") as file:
            for line in lines:
                digest.update(line)
                file.write(line)
                draft.rows += 1
                draft.bytes += len(line)
            file.flush()
            os.fsync(file.fileno())
        draft.sha256 = digest.hexdigest()
        if not draft.rows:
            raise DatasetError("No row would be left.", "Choose fewer rows to take out.")
        return draft

    def keep(self, drafts: Sequence[Draft]) -> list[str]:
        """Name the drafts and keep them, all or none; their IDs."""
        with self._db.write() as session:
            for draft in drafts:
                session.add(_record(session, draft))
                session.flush()
                folder = self.folder(draft.id)
                (folder / f"{ROWS}.part").replace(folder / ROWS)
                fsync_folder(folder)
        return [draft.id for draft in drafts]

    def everyone(self) -> list[DatasetRow]:
        """All datasets, oldest first."""
        with self._db.read() as session:
            return list(session.scalars(select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.id)))


def _record(session: Session, draft: Draft) -> DatasetRow:
    def is_taken(name: str) -> bool:
        return _is_taken(session, name)

    name = naming.claim(draft.name, is_taken) if draft.name is not None else naming.unique(draft.default_name, is_taken)
    origin = draft.origin
    return DatasetRow(
        id=draft.id,
        name=name,
        kind=origin["kind"],
        format=origin["format"],
        mapping=origin["mapping"],
        source=origin["source"],
        rows=draft.rows,
        skipped=0,
        sha256=draft.sha256,
        bytes=draft.bytes,
        parent_id=origin["id"],
        provenance=draft.provenance,
    )


def _is_taken(session: Session, name: str) -> bool:
    return session.scalar(select(DatasetRow.id).where(DatasetRow.name == name)) is not None
