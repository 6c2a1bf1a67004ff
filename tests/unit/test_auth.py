"""What counts as logged in, and what the gate takes for one of its own addresses."""

from __future__ import annotations

import dataclasses
import time

import pytest

from studio import auth
from studio.settings import Settings


@pytest.fixture
def login(settings: Settings) -> auth.Login:
    return auth.Login(dataclasses.replace(settings, token="secret", users=(("anna", "pass"),)))


def test_a_session_ends_with_its_time(login: auth.Login, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = login.new_session()
    assert login.is_session(cookie)
    later = time.time() + auth.SESSION_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert not login.is_session(cookie)


def test_a_session_can_not_be_made_up_or_prolonged(login: auth.Login) -> None:
    expires, signature = login.new_session().split(".")
    for forged in ("", ".", expires, f"{int(expires) + 1}.{signature}", f"{expires}.{signature[:-1]}", f"{expires}.{signature}é"):
        assert not login.is_session(forged)


def test_another_token_ends_all_sessions(login: auth.Login, settings: Settings) -> None:
    changed = auth.Login(dataclasses.replace(settings, token="other", users=(("anna", "pass"),)))
    assert not changed.is_session(login.new_session())


def test_the_signing_secret_is_private_and_outlives_a_restart(login: auth.Login, settings: Settings) -> None:
    again = auth.Login(dataclasses.replace(settings, token="secret", users=(("anna", "pass"),)))
    assert again.is_session(login.new_session())
    assert (settings.home / "session.secret").stat().st_mode & 0o077 == 0


def test_names_and_passwords_must_belong_together(login: auth.Login) -> None:
    assert login.is_person("anna", "pass") and login.is_person("", "secret")
    assert not login.is_person("anna", "") and not login.is_person("ben", "pass") and not login.is_person("", "")


def test_without_a_token_no_empty_one_lets_in(settings: Settings) -> None:
    assert not auth.Login(dataclasses.replace(settings, users=(("anna", "pass"),))).is_token("")


def test_after_ten_failures_a_client_waits_out_the_minute() -> None:
    now = 0.0
    failures = auth.Failures(lambda: now)
    for _ in range(9):
        failures.add("a")
    assert failures.wait_s("a") == 0
    failures.add("a")
    assert 0 < failures.wait_s("a") <= 61 and failures.wait_s("b") == 0
    now = 61.0
    assert failures.wait_s("a") == 0


def test_a_client_that_lies_about_its_address_waits_with_all_others() -> None:
    failures = auth.Failures(lambda: 0.0)
    for number in range(auth.MAX_ALL_FAILURES):
        failures.add(str(number))
    assert failures.wait_s("another") > 0


def test_many_clients_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth.Failures, "MAX_CLIENTS", 3)
    failures = auth.Failures()
    for client in "abcde":
        failures.add(client)
    assert len(failures._seen) == 3


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example", "/\\evil.example", "", "evil", "/a\r\nSet-Cookie: x=1", "/login?next=/", "javascript:x"],
)
def test_a_login_leads_to_this_site_only(target: str) -> None:
    assert auth.own_path(target) == "/"


def test_a_login_leads_back_to_where_it_was_asked() -> None:
    assert auth.own_path("/?tab=jobs&job=x") == "/?tab=jobs&job=x"


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
    assert auth.is_loopback(name) is expected
