"""Whether a request comes from a process of this very user on this machine, as the kernel says it. Only Linux says it."""

from __future__ import annotations

import ipaddress
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"  # a socket whose process is gone has another state, and root for its owner
# a proxy adds these: who sent the request is then not who opened the connection
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
FORWARDED_START = "x-forwarded-"

STATE = "peer"  # where the server keeps a Peer for all requests of a connection; see studio.connections
Address = tuple[str, int]
IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peer:
    """Whose the other end of a connection is: looked up once, since a connection does not change hands."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._is_known = False

    def owner(self, client: Address, server: Address) -> int | None:
        if not self._is_known:
            self._owner, self._is_known = _owner(client, server), True
        return self._owner


def can_tell() -> bool:
    """Whether this machine says whose a connection is. Linux does; below Windows (WSL) its relay stands between."""
    return TABLES[0].exists() and "microsoft" not in platform.uname().release.lower()


def is_own_user(scope: Mapping[str, Any]) -> bool:
    """Whether the ASGI request of `scope` comes over loopback from a process of the user who runs this one. False where it can't be told."""
    headers = {name.decode("latin-1").lower() for name, _ in scope.get("headers", ())}
    if headers & set(FORWARDED) or any(name.startswith(FORWARDED_START) for name in headers):
        return False
    if scope.get("http_version") == "1.0":  # no browser, but a proxy that adds no header (nginx as it is installed)
        return False
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or server[1] is None:
        return False
    peer = scope.get("state", {}).get(STATE) or Peer()
    owner: int | None = peer.owner((str(client[0]), int(client[1])), (str(server[0]), int(server[1])))
    return owner is not None and owner == _own_id()


def _own_id() -> int:
    if hasattr(os, "getuid"):
        return os.getuid()
    return -1  # where users have no numbers, no socket has an owner either


def _owner(client: Address, server: Address) -> int | None:
    """The user ID of the socket at `client` that is connected to `server`, both of this machine's loopback."""
    try:
        wanted = _ip(client[0]), client[1], _ip(server[0]), server[1]
    except ValueError:
        return None
    if not (wanted[0].is_loopback and wanted[2].is_loopback):
        return None
    port = f":{wanted[1]:04X} "  # most lines are of other connections: not worth reading
    for table in TABLES:
        for line in _lines(table):
            if port not in line:
                continue
            fields = line.split()
            if len(fields) > 7 and fields[3] == ESTABLISHED and (*_address(fields[1]), *_address(fields[2])) == wanted:
                return int(fields[7])
    return None


def _lines(table: Path) -> Iterator[str]:
    try:
        with table.open(encoding="ascii") as file:
            next(file, "")  # the heading
            yield from file
    except (OSError, ValueError):
        return


def _address(text: str) -> tuple[IP, int]:
    """`0100007F:1F90`: 32-bit words in the machine's own order."""
    words, _, port = text.partition(":")
    numbers = [int(words[start : start + 8], 16) for start in range(0, len(words), 8)]
    return _plain(ipaddress.ip_address(struct.pack(f"={len(numbers)}I", *numbers))), int(port, 16)


def _ip(text: str) -> IP:
    return _plain(ipaddress.ip_address(text.partition("%")[0]))


def _plain(address: IP) -> IP:
    """IPv4 as such where it is written as IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address
