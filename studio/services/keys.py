"""Keys for programs: made, listed, taken back. A key is shown once; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
import time

from sqlalchemy import select

from studio.db.models import ApiKeyRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.records import ApiKey, DeletedApiKey, KeyScope, NewApiKey
from studio.services.last_use import LastUse
from studio.services.paging import ALL, Listed, Page
from studio.settings import Settings

PREFIX = "studio-"
MAX_NAME = 64
MAX_DAYS = 3650
DAY_S = 24 * 3600


class KeyService:
    """What a person can do with keys. They matter where the studio asks for a login."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.db = db
        self._people = {"", *(name for name, _ in settings.users)}
        self._last_use = LastUse(db, ApiKeyRow)

    def list(self, page: Page = ALL) -> Listed[ApiKey]:
        """Newest first, without the keys themselves."""
        with self.db.read() as session:
            rows = page.read(session, select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id))
            return rows.as_are(_record(row) for (row,) in rows)

    def create(self, name: str, scope: KeyScope = KeyScope.EVERYTHING, days: int | None = None, person: str = "") -> NewApiKey:
        """A key, shown this once. `days`: how long it is good for; None does not end it. `person`: who makes it."""
        title = " ".join(name.split())
        if not 0 < len(title) <= MAX_NAME:
            raise StudioError(f"A key's name has 1 to {MAX_NAME} characters.", "Name it after the program that will use it.")
        if days is not None and not 0 < days <= MAX_DAYS:
            raise StudioError(f"A key is good for 1 to {MAX_DAYS:,} days.", "Leave the days out for a key that does not expire.")
        key = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        row = ApiKeyRow(name=title, sha256=digest(key), person=person, scope=scope, created_at=now)
        if days is not None:
            row.expires_at = now + days * DAY_S
        with self.db.write() as session:
            session.add(row)
            session.flush()
            return NewApiKey(**_record(row).model_dump(), key=key)

    def delete(self, key_id: str) -> DeletedApiKey:
        """Programs that use this key are refused from now on. Takes an ID, or a name that only one key has."""
        with self.db.write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                named = session.scalars(select(ApiKeyRow).where(ApiKeyRow.name == key_id)).all()
                if len(named) > 1:
                    raise StudioError(f"{len(named)} keys are named {key_id!r}.", "Name the one to take back by its ID.")
                row = next(iter(named), None)
            if row is None:
                raise NotFoundError(f"There is no key {key_id!r}.", "It may have been deleted; look at the list.")
            session.delete(row)
            return DeletedApiKey(id=row.id, name=row.name, created_at=row.created_at)

    def find(self, key: str) -> ApiKey | None:
        """The key that a program has sent; None where it was never made, is over, or belongs to somebody who may not log in any more."""
        with self.db.read() as session:
            row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.sha256 == digest(key)))
        if row is None or row.person not in self._people:
            return None
        if row.expires_at is not None and row.expires_at <= time.time():
            return None
        self._last_use.note(row.id, row.used_at)
        return _record(row)


def digest(key: str) -> str:
    """Plain SHA-256: a key is random and long, so there is nothing to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _record(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        person=row.person,
        scope=KeyScope(row.scope),
        created_at=row.created_at,
        used_at=row.used_at,
        expires_at=row.expires_at,
    )
