"""Who may name a folder over HTTP: a process of the same user on this machine, and nobody whom a proxy speaks for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from studio import peers, supervisor
from studio.auth import is_own_user
from studio.settings import Settings
from tests.servers import free_port

CONNECT = """
import encodings.idna, os, socket, sys  # all of it before the files of this user can no longer be read
host, port, user = sys.argv[1:]
if user != "None":
    os.setuid(int(user))
made = socket.create_connection((host, int(port)))
print("connected", flush=True)
input()
"""

pytestmark = pytest.mark.skipif(not peers.TABLES[0].exists(), reason="only Linux says whose a connection is")


@contextmanager
def connected(host: str, *, user: int | None = None, family: int = socket.AF_INET, bound: str = "") -> Iterator[dict[str, Any]]:
    """The scope of a request over a connection that another process holds open."""
    with socket.socket(family) as listening:
        if bound:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((bound or host, 0))
        listening.listen()
        listening.settimeout(30)
        port = listening.getsockname()[1]
        command = [sys.executable, "-c", CONNECT, host, str(port), str(user)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with child, listening.accept()[0] as accepted:
            assert child.stdout is not None and child.stdin is not None
            child.stdout.readline()
            yield {
                "type": "http",
                "client": accepted.getpeername()[:2],
                "server": accepted.getsockname()[:2],
                "headers": [(b"host", b"127.0.0.1:7860")],
            }
            child.stdin.write("\n")


def test_a_process_of_this_user_is_known(settings: Settings) -> None:
    with connected("127.0.0.1") as scope:
        assert peers.is_own_user(scope) and is_own_user(settings, scope)


@pytest.mark.parametrize(("host", "bound"), [("::1", ""), ("127.0.0.1", "::")])
def test_so_is_one_over_ipv6(host: str, bound: str) -> None:
    try:
        with connected(host, family=socket.AF_INET6, bound=bound) as scope:
            assert peers.is_own_user(scope)
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start another user's process")
def test_another_user_of_this_machine_is_not(settings: Settings) -> None:
    with connected("127.0.0.1", user=65534) as scope:
        assert not peers.is_own_user(scope) and not is_own_user(settings, scope)


def test_a_connection_that_is_gone_belongs_to_nobody() -> None:
    with connected("127.0.0.1") as scope:
        pass
    assert not peers.is_own_user(scope)
    assert not peers.is_own_user({**scope, "client": ("127.0.0.1", free_port())})


@pytest.mark.parametrize("header", peers.FORWARDED)
def test_whom_a_proxy_speaks_for_is_not_known(header: str) -> None:
    with connected("127.0.0.1") as scope:
        assert not peers.is_own_user({**scope, "headers": [(header.encode(), b"127.0.0.1")]})


@pytest.mark.parametrize("change", [{"client": None}, {"server": None}, {"server": ("/run/web.sock", None)}, {"client": ("testclient", 1)}])
def test_a_connection_without_addresses_is_not_known(change: dict[str, Any]) -> None:
    with connected("127.0.0.1") as scope:
        assert not peers.is_own_user({**scope, **change})


def test_nobody_names_folders_where_people_log_in_or_by_another_name(settings: Settings) -> None:
    with connected("127.0.0.1") as scope:
        assert not is_own_user(replace(settings, token="secret"), scope)
        assert not is_own_user(replace(settings, users=(("anna", "secret"),)), scope)
        assert not is_own_user(replace(settings, space_host="me.hf.space"), scope)
        assert not is_own_user(settings, {**scope, "headers": [(b"host", b"tunnel.example")]})


def announced(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, can_tell: bool) -> tuple[list[str], Settings]:
    """What `studio up` prints, and the settings that its page gets."""
    said: list[str] = []
    monkeypatch.setattr(peers, "can_tell", lambda: can_tell)
    found = supervisor.Supervisor(replace(settings, port=0), said.append)
    found._announce()
    found._announce_to_others()
    found._socket.close()
    return said, found.settings


def test_the_printed_addresses_let_in_whoever_can_not_be_known(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said, used = announced(settings, monkeypatch, can_tell=True)
    assert len(said) == 2 and said[0] == f"Adapter Studio: http://127.0.0.1:{used.port}/" and not used.has_login
    assert said[1].endswith(f"http://127.0.0.1:{used.port}/?token={used.local_token}") and len(used.local_token) > 20
    said, used = announced(settings, monkeypatch, can_tell=False)
    assert said == [f"Adapter Studio: http://127.0.0.1:{used.port}/?token={used.local_token}"]
    said, used = announced(replace(settings, token="secret"), monkeypatch, can_tell=True)
    assert said == [f"Adapter Studio: http://127.0.0.1:{used.port}/"] and used.local_token == ""


def test_a_token_that_others_can_guess_is_spoken_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = announced(replace(settings, token="secret", host="0.0.0.0"), monkeypatch, can_tell=True)
    assert "can guess it" in said[1]
    said, _ = announced(replace(settings, token="x" * 16, host="0.0.0.0"), monkeypatch, can_tell=True)
    assert len(said) == 1


def test_whose_a_connection_is_gets_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(peers, "_owner", lambda *_: seen.append(1) or os.getuid())
    scope = {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {peers.STATE: peers.Peer()}}
    assert [peers.is_own_user(scope) for _ in range(3)] == [True] * 3 and len(seen) == 1
    assert not peers.is_own_user({**scope, "headers": [(b"via", b"1.1 proxy")]})  # the headers are looked at each time
