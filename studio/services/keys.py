"""Keys for programs: made, listed, taken back. A key is shown once; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import select

from studio.db.models import ApiKeyRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.records import ApiKey, DeletedApiKey, NewApiKey

PREFIX = "studio-"
MAX_NAME = 64


class KeyService:
    """What a person can do with keys. They matter only where the studio asks for a login."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def list(self) -> list[ApiKey]:
        """Newest first, without the keys themselves."""
        with self.db.read() as session:
            return [_record(row) for row in session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc()))]

    def create(self, name: str) -> NewApiKey:
        """A key, shown this once."""
        title = " ".join(name.split())
        if not 0 < len(title) <= MAX_NAME:
            raise StudioError(f"A key's name has 1 to {MAX_NAME} characters.", "Name it after the program that will use it.")
        key = PREFIX + secrets.token_urlsafe(32)
        with self.db.write() as session:
            row = ApiKeyRow(name=title, sha256=digest(key))
            session.add(row)
            session.flush()
            return NewApiKey(id=row.id, name=row.name, created_at=row.created_at, key=key)

    def delete(self, key_id: str) -> DeletedApiKey:
        """Programs that use this key are refused from now on."""
        with self.db.write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFoundError(f"There is no key {key_id!r}.", "It may have been deleted; look at the list.")
            session.delete(row)
            return DeletedApiKey(id=row.id, name=row.name, created_at=row.created_at)

    def is_known(self, key: str) -> bool:
        with self.db.read() as session:
            return session.scalar(select(ApiKeyRow.id).where(ApiKeyRow.sha256 == digest(key))) is not None


def digest(key: str) -> str:
    """Plain SHA-256: a key is random and long, so there is nothing to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _record(row: ApiKeyRow) -> ApiKey:
    return ApiKey(id=row.id, name=row.name, created_at=row.created_at)
