"""New versions of datasets: rows are written aside, then kept with their rows of the database in one transaction.

Also what a dataset was made from, and what was made of it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
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
from studio.records import Dataset, DatasetKind, DatasetVersion
from studio.services import naming
from studio.services.dataset_files import ROWS, DatasetFiles, as_record
from studio.settings import Settings

VERSION = re.compile(r"(.+)-v(\d{1,5})")
SMALL_CHANGES = ("fix", "edit", "delete")  # versions that take the place of the one they come from


@dataclass(frozen=True)
class Origin:
    """What a version says about where its rows come from."""

    kind: DatasetKind
    format: str
    source: str
    mapping: dict[str, str] = field(default_factory=dict)
    parent: str | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> Origin:
        return cls(dataset.kind, dataset.format, dataset.source, dataset.mapping, dataset.id)


@dataclass
class Draft:
    """A version that is not kept yet. `id` is what its dataset will be called by; `name` None takes `default_name` or the next free."""

    origin: Origin
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
        self._db = db
        self._files = DatasetFiles(settings, db)

    def folder(self, dataset_id: str) -> Path:
        return self._files.folder(dataset_id)

    def claim(self, name: str | None) -> None:
        """Refuse a name that is taken or invalid, before work is done. Raises TakenError or StudioError."""
        self._files.claim(name)

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

    def everyone(self) -> list[Dataset]:
        """All datasets, oldest first."""
        with self._db.read() as session:
            return [as_record(row) for row in session.scalars(select(DatasetRow).order_by(DatasetRow.created_at, DatasetRow.id))]

    def family(self, dataset_id: str) -> list[DatasetVersion]:
        """What a dataset came from and what was made of it, oldest first."""
        everyone = self.everyone()
        members = _ancestors(everyone, dataset_id) | _descendants(everyone, dataset_id)
        shown = DatasetVersion.model_fields
        return [DatasetVersion(**{name: getattr(each, name) for name in shown}) for each in everyone if each.id in members]

    def sibling(self, dataset_id: str) -> set[str]:
        """The other side of the split that a dataset comes from, in its newest version; empty where there is none."""
        everyone = self.everyone()
        known = {each.id: each for each in everyone}
        each = known.get(dataset_id)
        while each is not None and each.provenance.get("made_by") in SMALL_CHANGES:
            each = known.get(each.parent or "")
        if each is None or each.provenance.get("made_by") != "split":
            return set()
        newest = known.get(each.provenance.get("sibling", ""))
        if newest is None:
            return set()
        for later in everyone:
            if later.parent == newest.id and later.provenance.get("made_by") in SMALL_CHANGES:
                newest = later
        return {newest.id}

    def next_name(self, name: str) -> str:
        """The first free of name-v2, name-v3, …; for name-v4 from name-v5 on."""
        taken = {each.name for each in self.everyone()}
        stem, number = name, 1
        if found := VERSION.fullmatch(name):
            stem, number = found[1], int(found[2])
        names = (derived(stem, f"v{n}") for n in itertools.count(number + 1))
        return next(wanted for wanted in names if wanted not in taken)


def derived(name: str, suffix: str) -> str:
    """`name-suffix`, short enough to be a name."""
    return f"{name[: naming.LENGTH - 1 - len(suffix) - 4]}-{suffix}"


def _record(session: Session, draft: Draft) -> DatasetRow:
    origin = draft.origin
    return DatasetRow(
        id=draft.id,
        name=naming.choose(draft.name, draft.default_name, naming.taken_in(session, DatasetRow.name)),
        kind=origin.kind.value,
        format=origin.format,
        mapping=origin.mapping,
        source=origin.source,
        rows=draft.rows,
        skipped=0,
        sha256=draft.sha256,
        bytes=draft.bytes,
        parent_id=origin.parent,
        provenance=draft.provenance,
    )


def _parents(dataset: Dataset) -> set[str]:
    return {parent for parent in [dataset.parent, *dataset.provenance.get("parents", [])] if parent}


def _ancestors(everyone: Sequence[Dataset], wanted: str) -> set[str]:
    known = {each.id: each for each in everyone}
    found: set[str] = set()
    waiting = {wanted}
    while waiting:
        waiting = {parent for each in waiting if each in known for parent in _parents(known[each])} - found
        found |= waiting
    return found


def _descendants(everyone: Sequence[Dataset], wanted: str) -> set[str]:
    """Also `wanted` itself."""
    found = {wanted}
    while True:
        more = {each.id for each in everyone if each.id not in found and _parents(each) & found}
        if not more:
            return found
        found |= more
