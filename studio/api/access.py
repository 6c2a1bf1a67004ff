"""/api/keys and /api/sessions: programs' keys and people's logins."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here
from studio.records import ApiKey, Caller, DeletedApiKey, EndedSession, KeyScope, LoginSession, NewApiKey

router = APIRouter(route_class=JsonRoute, prefix="/api")


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # studio.auth has put it there
    return caller


By = Annotated[Caller, Depends(_caller)]


class NewKey(Body):
    name: str
    scope: KeyScope = KeyScope.EVERYTHING
    days: int | None = None


@router.get("/keys")
def list_keys(studio: Here, part: AskedPart) -> list[ApiKey]:
    """Keys for programs, without the keys themselves."""
    return part.told(studio.keys.list(part.page))


@router.post("/keys", status_code=201)
def create_key(studio: Here, caller: By, body: NewKey) -> NewApiKey:
    """Make a key for a program; `key` is shown this once. `days`: how long it is good for; without them it does not expire."""
    return studio.keys.create(body.name, body.scope, body.days, caller.person)


@router.delete("/keys/{key}")
def delete_key(studio: Here, key: str) -> DeletedApiKey:
    return studio.keys.delete(key)


@router.get("/sessions")
def list_sessions(studio: Here, part: AskedPart, caller: By) -> list[LoginSession]:
    """Browsers that are logged in with the caller's name; with the token, all of them."""
    return part.of(studio.sessions.list(caller.person, caller.session))


@router.delete("/sessions/{session}")
def end_session(studio: Here, caller: By, session: str) -> EndedSession:
    """That browser has to log in again."""
    return studio.sessions.end(session, caller.person)


@router.delete("/sessions")
def end_sessions(studio: Here, caller: By) -> list[EndedSession]:
    """All that the list shows, except the one that asks."""
    return list(studio.sessions.end_all(caller.person, but=caller.session))
