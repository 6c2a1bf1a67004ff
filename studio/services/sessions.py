"""Logins of people's browsers: opened by a password or the token, listed, ended.

A cookie holds a random text that means nothing elsewhere; its hash is kept here, with whose login it is. A session is over when
it is ended, when its time is up, and when the password or token that opened it is another one.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import OperationalError

from studio.db.models import SessionRow
from studio.db.session import Database
from studio.errors import NotFoundError
from studio.records import EndedSession, LoginSession
from studio.services.keys import digest
from studio.services.last_use import LastUse
from studio.settings import Settings

log = logging.getLogger(__name__)
SESSION_S = 14 * 24 * 3600
MAX_ADDRESS, MAX_DEVICE = 64, 80
# in this order: most browsers also name those that they once pretended to be
BROWSERS = (("Edg", "Edge"), ("OPR", "Opera"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
SYSTEMS = (("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows"), ("Mac OS", "macOS"), ("Linux", "Linux"))


class SessionService:
    """What a person can do with logins; the gate (studio.auth) opens and finds them."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.db = db
        self._settings = settings
        self._users = dict(settings.users)
        self._last_use = LastUse(db, SessionRow)
        self._secret = b""

    def open(self, person: str, *, address: str = "", agent: str = "") -> str:
        """The cookie of a new session of `person`, who has just shown the password or the token."""
        cookie = secrets.token_urlsafe(32)
        now = time.time()
        row = SessionRow(
            sha256=digest(cookie),
            person=person,
            credential=self._credential(person),
            address=address[:MAX_ADDRESS],
            device=device(agent),
            created_at=now,
            used_at=now,
            expires_at=now + SESSION_S,
        )
        with self.db.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
            session.add(row)
        return cookie

    def find(self, cookie: str) -> LoginSession | None:
        """The session that a browser's cookie stands for; None where it is over."""
        if not cookie:
            return None
        with self.db.read() as session:
            row = session.scalar(select(SessionRow).where(SessionRow.sha256 == digest(cookie)))
        if row is None or row.expires_at <= time.time() or row.credential != self._credential(row.person):
            return None
        self._last_use.note(row.id, row.used_at)
        return _session(row)

    def list(self, person: str = "", current: str = "") -> list[LoginSession]:
        """The one used last first: those of `person`, or all of them for whoever runs the studio (""). `current`: the ID that asks."""
        query = select(SessionRow).where(SessionRow.expires_at > time.time()).order_by(SessionRow.used_at.desc())
        if person:
            query = query.where(SessionRow.person == person)
        with self.db.read() as session:
            return [_session(row, current) for row in session.scalars(query)]

    def end(self, session_id: str, person: str = "") -> EndedSession:
        """The browser has to log in again. `person` may end their own, whoever runs the studio ("") any."""
        with self.db.write() as session:
            row = session.get(SessionRow, session_id)
            if row is None or person not in ("", row.person):
                raise NotFoundError(f"There is no session {session_id!r}.", "It may have ended; look at the list.")
            session.delete(row)
            return EndedSession(**_session(row).model_dump())

    def end_all(self, person: str = "", but: str = "") -> Sequence[EndedSession]:
        """Every session that `list` shows, except the one with the ID `but`."""
        ended = [EndedSession(**one.model_dump()) for one in self.list(person) if one.id != but]
        self.log_out(*(one.id for one in ended))
        return ended

    def log_out(self, *session_ids: str) -> None:
        with self.db.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.id.in_(session_ids)))

    def sweep(self) -> None:
        """Forget what is over: a password that was changed, a person who is gone, a time that is up."""
        people = {"", *self._users}
        valid = [(SessionRow.person == person) & (SessionRow.credential == self._credential(person)) for person in people]
        try:
            with self.db.write() as session:
                session.execute(delete(SessionRow).where(~or_(*valid) | (SessionRow.expires_at <= time.time())))
        except OperationalError as exc:  # another program holds the database: what is over lets nobody in, it is only listed
            log.warning("Logins that are over could not be deleted (%s).", exc.orig)

    def _credential(self, person: str) -> str:
        """What opens the door for `person`, as a hash that tells nothing without the secret of this STUDIO_HOME."""
        words = self._users.get(person, "")
        if not person:
            words = self._settings.token or self._settings.local_token
        if not self._secret:
            self._secret = _secret(self._settings.home / "session.secret")
        return hmac.digest(self._secret, json.dumps([person, words]).encode(), "sha256").hex()


def device(agent: str) -> str:
    """`Firefox on Linux` of what a browser says of itself; the first words of it where it is none that people know."""
    browser = next((name for mark, name in BROWSERS if mark in agent), "")
    system = next((name for mark, name in SYSTEMS if mark in agent), "")
    return " on ".join(filter(None, (browser, system))) or " ".join(agent.split())[:MAX_DEVICE]


def _session(row: SessionRow, current: str = "") -> LoginSession:
    return LoginSession(
        id=row.id,
        person=row.person,
        device=row.device,
        address=row.address,
        created_at=row.created_at,
        used_at=row.used_at,
        expires_at=row.expires_at,
        is_current=row.id == current,
    )


def _secret(path: Path) -> bytes:
    """The secret of this STUDIO_HOME; made once, readable by its owner only."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))
    try:
        os.link(part, path)  # the first of two processes wins, whole
    except FileExistsError:
        pass
    finally:
        part.unlink()
    return path.read_bytes()
