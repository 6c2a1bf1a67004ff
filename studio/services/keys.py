"""Keys for programs: made, listed, taken back. A key is shown once; only its hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import select

from studio.db.models import ApiKey
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError

PREFIX = "studio-"
MAX_NAME = 64


class KeyService:
    """What a person can do with keys. They matter only where the studio asks for a login."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def list(self) -> list[dict[str, Any]]:
        """Newest first, without the keys themselves."""
        with self.db.read() as session:
            return [_record(row) for row in session.scalars(select(ApiKey).order_by(ApiKey.created_at.desc()))]

    def create(self, name: str) -> dict[str, Any]:
        """The record with `key`, which nobody can look up again."""
        title = " ".join(name.split())
        if not 0 < len(title) <= MAX_NAME:
            raise StudioError(f"A key's name has 1 to {MAX_NAME} characters.", "Name it after the program that will use it.")
        key = PREFIX + secrets.token_urlsafe(32)
        with self.db.write() as session:
            row = ApiKey(name=title, sha256=digest(key))
            session.add(row)
            session.flush()
            return {**_record(row), "key": key}

    def delete(self, key_id: str) -> dict[str, Any]:
        """Programs that use this key are refused from now on."""
        with self.db.write() as session:
            row = session.get(ApiKey, key_id)
            if row is None:
                raise NotFoundError(f"There is no key {key_id!r}.", "It may have been deleted; look at the list.")
            session.delete(row)
            return {**_record(row), "deleted": True}

    def is_known(self, key: str) -> bool:
        with self.db.read() as session:
            return session.scalar(select(ApiKey.id).where(ApiKey.sha256 == digest(key))) is not None


def digest(key: str) -> str:
    """Plain SHA-256: a key is random and long, so there is nothing to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _record(row: ApiKey) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "created_at": row.created_at}
