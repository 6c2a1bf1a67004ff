"""Connections to the page: who waits too long, or opens too many, is closed, so that everybody else is served.

A request has to be whole within some time: its header within HEADER_S, and its body may not stand still for longer than BODY_S. One
address may hold a part of all connections; a further one takes the place of the oldest that asks for nothing just now.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from studio import peers

HEADER_S, BODY_S = 10.0, 30.0
MOST_PER_ADDRESS = 256
RESERVED_FILES = 128  # for databases, logs, uploads and children
MOST_FILES = 65_536
QUIET_S = 60.0  # between two lines about the same want
OUT_OF_FILES = "socket.accept() out of system resource"


class Connections:
    """All open connections of one server, in the order in which they came."""

    def __init__(self, most: int, most_per_address: int = MOST_PER_ADDRESS, proxies: Iterable[str] = ()) -> None:
        self._most = most
        self._most_per_address = min(most_per_address, most // 2)
        self._proxies = [ipaddress.ip_network(text) for text in proxies]  # through which many people come
        self._all: dict[LimitedProtocol, str] = {}
        self._of: defaultdict[str, dict[LimitedProtocol, None]] = defaultdict(dict)

    def add(self, made: LimitedProtocol, address: str) -> None:
        """Close one that asks for nothing where this one is too many, else this one."""
        crowd: Iterable[LimitedProtocol] = ()
        if len(self._all) >= self._most:
            crowd = self._all
        elif len(self._of[address]) >= self._most_per_address and not self._is_proxy(address):
            crowd = self._of[address]
        is_one_too_many = bool(crowd)
        idle = next((other for other in crowd if other.is_idle), None)
        self._all[made], self._of[address][made] = address, None
        if is_one_too_many:
            closed = idle or made
            self.remove(closed)
            closed.transport.abort()

    def remove(self, gone: LimitedProtocol) -> None:
        address = self._all.pop(gone, None)
        if address is None:
            return
        self._of[address].pop(gone, None)
        if not self._of[address]:
            del self._of[address]

    def _is_proxy(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in network for network in self._proxies)
        except ValueError:
            return False


class LimitedProtocol(H11Protocol):
    """uvicorn's, which has no limit on how long a request may take to arrive. `limited` binds it to the connections of a server."""

    open: Connections
    header_s, body_s = HEADER_S, BODY_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._is_header_timed = False

    @property
    def is_idle(self) -> bool:
        """Whether no whole request is here that waits for its answer."""
        return self.conn.their_state is h11.IDLE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, peers.STATE: peers.Peer()}  # one for all requests of this connection
        self._time_header()
        address, _ = self.client or ("", 0)
        self.open.add(self, address)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.open.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def _look(self) -> None:
        """Time what is missing of a request: from its beginning for a header, from its last bytes for a body."""
        state = self.conn.their_state
        if state is h11.IDLE and self.conn.trailing_data[0]:
            self._time_header()
        elif state is h11.SEND_BODY:
            self._start_timer(self.body_s)
        elif state is not h11.IDLE:
            self._stop_timer()

    def _time_header(self) -> None:
        if not self._is_header_timed:
            self._start_timer(self.header_s)
            self._is_header_timed = True

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._end)

    def _stop_timer(self) -> None:
        self._is_header_timed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        is_ours_to_go_on = self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue)
        if not self._is_header_timed and is_ours_to_go_on:
            self._start_timer(self.body_s)
            return
        self._stop_timer()
        self.transport.abort()


def limited(open_: Connections) -> type[LimitedProtocol]:
    """A protocol class for `uvicorn.Config(http=…)` whose connections are counted in `open_`."""
    return type("CountedProtocol", (LimitedProtocol,), {"open": open_})


def raise_file_limit() -> int:
    """Allow this process as many open files as its user may ask for; returns how many."""
    if sys.platform == "win32":
        return MOST_FILES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


class OnceAMinute(logging.Filter):
    """Lets a line that begins with `start` through once in QUIET_S, and then says how many there were."""

    def __init__(self, start: str = OUT_OF_FILES) -> None:
        super().__init__()
        self._start = start
        self._next = 0.0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(self._start):
            return True
        if time.monotonic() < self._next:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg = f"{record.msg}\nAnd {self._left_out:,} times more since the last such line."
        self._next, self._left_out = time.monotonic() + QUIET_S, 0
        return True
