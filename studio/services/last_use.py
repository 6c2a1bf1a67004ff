"""When keys and logins were last used: written down at most once a minute, and never while a request waits for it."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from studio.db.models import ApiKeyRow, SessionRow
from studio.db.session import Database

STEP_S = 60.0

log = logging.getLogger(__name__)


class LastUse:
    """The column `used_at` of one table."""

    def __init__(self, db: Database, table: type[ApiKeyRow] | type[SessionRow]) -> None:
        self._db = db
        self._table = table
        self._writing = threading.Lock()

    def note(self, row_id: str, known: float | None) -> None:
        """Used now; `known` is what the row says so far."""
        if known is not None and time.time() - known < STEP_S:
            return
        if self._writing.acquire(blocking=False):  # else the next use will do
            threading.Thread(target=self._write, args=(row_id,), name="last-use", daemon=True).start()

    def _write(self, row_id: str) -> None:
        try:
            with self._db.write() as session:
                session.execute(update(self._table).where(self._table.id == row_id).values(used_at=time.time()))
        except SQLAlchemyError as exc:  # the database is busy, and nobody waits for this
            log.info("A last use was not written down (%s).", exc)
        finally:
            self._writing.release()
