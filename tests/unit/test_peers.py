"""Who may name a folder over HTTP: a process of the same user on this machine, and nobody whom a proxy speaks for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from studio import peers
from studio.auth import may_name_folders
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
        assert peers.is_own_user(scope) and may_name_folders(settings, scope)


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
        assert not peers.is_own_user(scope) and not may_name_folders(settings, scope)


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
    from dataclasses import replace

    with connected("127.0.0.1") as scope:
        assert not may_name_folders(replace(settings, token="secret"), scope)
        assert not may_name_folders(replace(settings, users=(("anna", "secret"),)), scope)
        assert not may_name_folders(replace(settings, space_host="me.hf.space"), scope)
        assert not may_name_folders(settings, {**scope, "headers": [(b"host", b"tunnel.example")]})
