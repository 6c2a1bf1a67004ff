"""What counts as logged in, what failures cost, and what the gate takes for one of its own addresses."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

import pytest

from studio import failures, login, origins, scopes
from studio.db import migrations
from studio.db.models import SessionRow
from studio.db.session import Database
from studio.errors import NotFoundError
from studio.records import KeyScope
from studio.services.keys import KeyService
from studio.services.sessions import SESSION_S, SessionService, device
from studio.settings import Settings

Opened = Callable[..., login.Login]


@pytest.fixture
def opened(settings: Settings) -> Opened:
    """A Login of this STUDIO_HOME, under a token and users of one's choice."""
    db = Database(settings.db_url)
    migrations.migrate(db)

    def open_(token: str = "secret", users: tuple[tuple[str, str], ...] = (("anna", "pass"), ("ben", "word"))) -> login.Login:
        chosen = dataclasses.replace(settings, token=token, users=users)
        return login.Login(chosen, SessionService(chosen, db), KeyService(chosen, db))

    return open_


def test_a_session_belongs_to_its_person_and_no_two_are_alike(opened: Opened) -> None:
    sessions = opened().sessions
    cookies = [sessions.open(person) for person in ("anna", "ben", "anna", "")]
    assert len(set(cookies)) == 4
    assert [one.person for one in map(sessions.find, cookies) if one] == ["anna", "ben", "anna", ""]
    for forged in ("", "x", cookies[0][:-1], f"{cookies[0]}x", f"{cookies[0][:-1]}é", "\ud800"):
        assert sessions.find(forged) is None


def test_a_session_ends_with_its_time(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = opened().sessions
    cookie = sessions.open("anna")
    later = time.time() + SESSION_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert sessions.find(cookie) is None and sessions.list() == []


def test_a_session_that_was_ended_is_over_for_every_process(opened: Opened) -> None:
    sessions, elsewhere = opened().sessions, opened().sessions
    first, second = sessions.open("anna"), sessions.open("anna")
    found = sessions.find(first)
    assert found is not None
    assert elsewhere.end(found.id).person == "anna" and sessions.find(first) is None and sessions.find(second)
    with pytest.raises(NotFoundError):
        elsewhere.end(found.id)


def test_another_password_ends_the_sessions_of_its_name_only(opened: Opened) -> None:
    sessions = opened().sessions
    annas, bens, owners = sessions.open("anna"), sessions.open("ben"), sessions.open("")
    changed = opened(users=(("anna", "another"), ("ben", "word"))).sessions
    assert changed.find(annas) is None and changed.find(bens) and changed.find(owners)
    gone = opened(token="other", users=(("anna", "pass"),)).sessions
    assert gone.find(annas) and gone.find(bens) is None and gone.find(owners) is None
    gone.sweep()
    assert [one.person for one in gone.list()] == ["anna"]


def test_people_see_and_end_their_own_sessions_and_the_owner_all(opened: Opened) -> None:
    sessions = opened().sessions
    annas, bens = sessions.find(sessions.open("anna")), sessions.find(sessions.open("ben", agent="curl/8"))
    assert annas and bens
    assert [one.id for one in sessions.list("anna")] == [annas.id] and len(sessions.list()) == 2
    with pytest.raises(NotFoundError):
        sessions.end(bens.id, "anna")
    another = sessions.find(sessions.open("anna"))
    assert another is not None
    assert [one.id for one in sessions.end_all("anna", but=another.id)] == [annas.id]
    assert {one.id for one in sessions.list()} == {another.id, bens.id}


def test_no_cookie_is_kept_and_the_secret_is_private(opened: Opened, settings: Settings) -> None:
    sessions = opened().sessions
    cookie = sessions.open("anna")
    with sessions.db.read() as session:
        (row,) = session.query(SessionRow)
        assert cookie not in str(vars(row)) and "pass" not in row.credential
    assert (settings.home / "session.secret").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Safari/604.1", "Safari on iPhone"),
        ("  curl/8.5 ", "curl/8.5"),
        ("", ""),
    ],
)
def test_a_device_is_named_as_people_do(agent: str, expected: str) -> None:
    assert device(agent) == expected


def test_names_and_passwords_must_belong_together(opened: Opened) -> None:
    found = opened()
    assert found.person("anna", "pass") == "anna" and found.person("", "secret") == "" and found.person("anna", "secret") == ""
    for name, password in (("anna", ""), ("ben", "pass"), ("", ""), ("", "pass")):
        assert found.person(name, password) is None


def test_without_a_token_no_empty_one_lets_in(opened: Opened) -> None:
    assert not opened(token="").is_token("")


def test_a_key_is_good_until_it_expires_for_who_may_still_log_in(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = opened().keys
    short, annas, old = keys.create("short", KeyScope.READ, 2), keys.create("annas", person="anna"), keys.create("old")
    found = keys.find(short.key)
    assert found is not None and (found.scope, found.name) == (KeyScope.READ, "short")
    without_anna = opened(users=(("ben", "word"),)).keys
    assert without_anna.find(annas.key) is None and without_anna.find(old.key)
    later = time.time() + 2 * 24 * 3600 + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert keys.find(short.key) is None and keys.find(annas.key) and keys.find(old.key)


def test_the_first_right_one_of_several_credentials_counts(opened: Opened) -> None:
    found = opened()
    key = found.keys.create("ci", KeyScope.CHAT, person="ben").key
    caller = found.by_key(["wrong", key])
    assert caller is not None and (caller.person, caller.scope) == ("ben", KeyScope.CHAT)
    assert found.by_key(["secret"]) is not None and found.by_key(["wrong", "no"]) is None and found.by_key([]) is None


@pytest.mark.parametrize(
    ("scope", "method", "path", "expected"),
    [
        ("chat", "POST", "/v1/chat/completions", True),
        ("chat", "GET", "/v1/models", True),
        ("chat", "POST", "/api/chat", True),
        ("chat", "GET", "/api/jobs", False),
        ("chat", "GET", "/", False),
        ("chat", "POST", "/v1x", False),
        ("read", "GET", "/api/jobs", True),
        ("read", "HEAD", "/v1/models", True),
        ("read", "POST", "/api/fit", True),
        ("read", "POST", "/api/jobs", False),
        ("read", "DELETE", "/api/jobs/x", False),
        ("read", "POST", "/v1/chat/completions", False),
        ("read", "GET", "/api/keys", False),
        ("read", "GET", "/api/sessions", False),
        ("read", "GET", "/gradio_api/info", False),
        ("everything", "DELETE", "/api/keys/x", True),
    ],
)
def test_a_scope_is_kept_to(scope: str, method: str, path: str, expected: bool) -> None:
    assert scopes.allows(KeyScope(scope), method, path) is expected


def test_after_ten_failures_the_next_is_one_too_many_for_a_minute() -> None:
    now = 0.0
    counted = failures.Failures(lambda: now)
    one, other = failures.who("anna", "1.2.3.4"), failures.who("ben", "1.2.3.4")
    for _ in range(9):
        counted.add(one)
    assert counted.wait_s(one) == 0
    counted.add(one)
    assert 0 < counted.wait_s(one) <= 61 and counted.wait_s(other) == counted.wait_s(failures.who("anna", "1.2.3.5")) == 0
    now = 61.0
    assert counted.wait_s(one) == 0


def test_a_household_counts_as_one() -> None:
    assert failures.who("", "2001:db8::1") == failures.who("", "2001:db8::ffff:2") != failures.who("", "2001:db8:0:1::1")
    assert failures.who("", "1.2.3.4") != failures.who("", "1.2.3.5") and failures.who("", "testclient") == ("", "testclient")


def test_many_clients_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures.Failures, "MAX_CLIENTS", 3)
    counted = failures.Failures()
    for client in "abcde":
        counted.add((client, ""))
    assert len(counted._seen) == 3


def test_who_guesses_passwords_waits_for_a_turn_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(failures.asyncio, "sleep", sleep)
    turns = failures.Turns(lambda: 0.0)

    async def take(one: failures.Who, times: int) -> list[bool]:
        return [await turns.take(one) for _ in range(times)]

    assert asyncio.run(take(("anna", "a"), 9)) == [True] * 8 + [False]
    assert waits == [0.5 * n for n in range(1, 9)]
    assert asyncio.run(take(("anna", "b"), 1)) == [True] and waits[-1] == 0.5


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "",
        "evil",
        "/a\r\nSet-Cookie: x=1",
        "/login?next=/",
        "/logout",
        "javascript:x",
    ],
)
def test_a_login_leads_to_this_site_only(target: str) -> None:
    assert login.own_path(target) == "/"


def test_a_login_leads_back_to_where_it_was_asked() -> None:
    assert login.own_path("/?tab=jobs&job=x") == "/?tab=jobs&job=x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("127.0.0.1.evil.example", False),
        ("evil", False),
        ("0", False),
        ("", False),
    ],
)
def test_only_names_of_this_machine_are_loopback(name: str, expected: bool) -> None:
    assert origins.is_loopback(name) is expected
