"""Who may come in: logins of people, keys of programs."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from studio.records.base import Record


class KeyScope(StrEnum):
    """What a key is good for."""

    CHAT = "chat"  # ask models
    READ = "read"  # look at everything, change nothing
    EVERYTHING = "everything"


class Caller(Record):
    """Who has sent a request, as far as the studio can tell."""

    person: str = ""  # of STUDIO_USERS; "" is whoever runs the studio or has its token
    scope: KeyScope = KeyScope.EVERYTHING
    session: str = ""  # ID of the login that the request came with


class ApiKey(Record):
    """A key for a program, without the key itself."""

    id: str
    name: str
    person: str  # who made it; "" is whoever runs the studio or has its token
    scope: KeyScope
    created_at: float
    used_at: float | None  # null where it has not been used yet; at most a minute late
    expires_at: float | None  # null where it does not expire


class NewApiKey(ApiKey):
    """A key that was made a moment ago."""

    key: str  # shown this once: only its hash is kept


class DeletedApiKey(Record):
    """A key that is refused from now on."""

    id: str
    name: str
    created_at: float
    deleted: Literal[True] = True


class LoginSession(Record):
    """A browser that is logged in."""

    id: str
    person: str  # "" is whoever has the token
    device: str  # browser and system as it names them; "" where it names none
    address: str
    created_at: float
    used_at: float  # at most a minute late
    expires_at: float
    is_current: bool = False  # the one that asks


class EndedSession(LoginSession):
    """A login that is over."""

    ended: Literal[True] = True
