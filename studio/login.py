"""What opens the door: the token, a user's password, a browser's session, a program's key. And the page that asks for it."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from studio.records import Caller
from studio.services.keys import KeyService
from studio.services.sessions import SessionService
from studio.settings import STATIC, Settings

_templates = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


class Login:
    """Compares what was sent with what is known. Looks into the database: call it in a thread."""

    def __init__(self, settings: Settings, sessions: SessionService, keys: KeyService) -> None:
        self.tokens = tuple(filter(None, (settings.token, settings.local_token)))
        self.users = dict(settings.users)
        self.sessions = sessions
        self.keys = keys
        # the port keeps two studios of one machine apart: cookies don't know ports
        self.cookie = f"studio_session_{settings.port}"

    def is_token(self, token: str) -> bool:
        return any([same(token, own) for own in self.tokens])  # a list: each is compared, so that the time tells nothing

    def person(self, name: str, password: str) -> str | None:
        """Whose name and password these are, "" for the token in place of them; None for nobody's."""
        is_user = same(password, self.users.get(name, secrets.token_hex())) and name in self.users
        if is_user:
            return name
        return "" if self.is_token(password) else None

    def by_session(self, cookie: str) -> Caller | None:
        found = self.sessions.find(cookie)
        if found is None:
            return None
        return Caller(person=found.person, session=found.id)

    def by_key(self, credentials: list[str]) -> Caller | None:
        """The first of `credentials` that is the token or a key."""
        return next(self._callers(credentials), None)

    def _callers(self, credentials: list[str]) -> Iterator[Caller]:
        for text in credentials:
            if self.is_token(text):
                yield Caller()
            elif found := self.keys.find(text):
                yield Caller(person=found.person, scope=found.scope)


def login_page(target: str, *, asks_name: bool, problem: str = "", status: int = 200) -> Response:
    """A page of its own: it must work before anything of the studio is shown."""
    page = _templates.get_template("login.html").render(target=target, asks_name=asks_name, problem=problem)
    return HTMLResponse(page, status_code=status, headers={"Cache-Control": "no-store"})


def own_path(target: str) -> str:
    """`target` if it is a path of this site, else "/": a login must not lead to another one."""
    is_own = target.startswith("/") and not target.startswith(("//", "/\\"))
    is_plain = all(32 <= ord(character) < 127 for character in target)
    if not is_own or not is_plain or target.startswith(("/login", "/logout")):
        return "/"
    return target


def same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())
