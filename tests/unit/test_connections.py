"""Connections that wait too long or are too many are closed, and nobody else notices."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from studio import connections, peers

HALF = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body, and how many requests the connection has brought so far."""
    peer = scope["state"][peers.STATE]
    peer.requests = getattr(peer, "requests", 0) + 1
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} {peer.requests}")(scope, receive, send)


@contextmanager
def serving(most: int = 100, each: int = 50, header_s: float = 0.2, body_s: float = 0.2) -> Iterator[int]:
    """The port of a server on which slow is soon too slow."""
    protocol = connections.limited(connections.Connections(most, each))
    protocol.header_s, protocol.body_s = header_s, body_s
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def opened(port: int, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.sendall(sent)
    return made


def read_until(connection: socket.socket, end: bytes) -> None:
    """Raises TimeoutError where it does not come."""
    seen = b""
    while not seen.endswith(end):
        seen += (more := connection.recv(1000))
        assert more, seen


def is_closed(connection: socket.socket) -> bool:
    """Waits for its end: an answer would be there at once."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_half_a_request_is_not_waited_for() -> None:
    """Nothing at all, the beginning of a header, half a body, half a chunk."""
    body = b"POST / HTTP/1.1\r\nHost: x\r\n"
    sent = (b"", b"G", HALF, body + b"Content-Length: 9\r\n\r\nhalf", body + b"Transfer-Encoding: chunked\r\n\r\n5\r\nha")
    with serving() as port, ExitStack() as stack:
        made = [stack.enter_context(closing(opened(port, one))) for one in sent]
        assert [is_closed(connection) for connection in made] == [True] * 5


def test_neither_is_the_second_one_of_a_connection() -> None:
    with serving() as port, closing(opened(port, HALF + b"\r\n")) as connection:
        read_until(connection, b"\r\n\r\n0 1")
        connection.sendall(HALF)
        assert is_closed(connection)


def test_drops_do_not_prolong_a_header_and_do_prolong_a_body() -> None:
    with serving(header_s=0.3, body_s=0.3) as port:
        with closing(opened(port, HALF)) as header, pytest.raises(OSError):
            for _ in range(100):
                header.sendall(b"X-More: 1\r\n")
                time.sleep(0.02)
        with closing(opened(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")) as body:
            for _ in range(20):
                body.sendall(b"x")
                time.sleep(0.02)
            read_until(body, b"\r\n\r\n20 1")


def test_a_whole_request_passes_whoever_else_is_slow() -> None:
    with serving(header_s=30, most=20, each=5) as port:
        slow = [opened(port, HALF) for _ in range(12)]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            assert [client.post("/", content=b"abc").text for _ in range(3)] == ["3 1", "3 2", "3 3"]
        assert is_closed(slow[0])  # the oldest makes room
        for connection in slow:
            connection.close()


class Fake:
    def __init__(self, is_idle: bool = False) -> None:
        self.is_idle, self.is_closed = is_idle, False
        self.transport = self

    def abort(self) -> None:
        self.is_closed = True


def closed(made: list[Fake]) -> list[int]:
    return [number for number, one in enumerate(made) if one.is_closed]


def add(crowd: connections.Connections, made: list[Fake], address: str) -> list[Fake]:
    for one in made:
        crowd.add(one, address)  # type: ignore[arg-type]
    return made


def test_whoever_has_too_many_loses_the_oldest_idle_one_and_never_one_at_work() -> None:
    crowd = connections.Connections(10, 3)
    greedy = add(crowd, [Fake(), Fake(True), Fake(), Fake(), Fake()], "a")
    others = add(crowd, [Fake(True)], "b")
    assert closed(greedy) == [1, 4] and closed(others) == []
    crowd.remove(greedy[0])  # type: ignore[arg-type]
    assert closed(add(crowd, [Fake()], "a")) == []


def test_all_together_are_limited_and_many_people_may_come_through_a_proxy() -> None:
    crowd = connections.Connections(6, 3, ["10.0.0.0/8"])
    through = add(crowd, [Fake(True) for _ in range(5)], "10.1.2.3")
    assert closed(through) == []
    others = add(crowd, [Fake(), Fake()], "b")
    assert closed(others) == [] and closed(through) == [0]


def test_the_limit_of_files_is_raised_as_far_as_it_goes() -> None:
    code = "from studio.connections import raise_file_limit as up; import resource as r; print(up(), *r.getrlimit(r.RLIMIT_NOFILE))"
    command = ["bash", "-c", f'ulimit -Sn 300; ulimit -Hn 700; exec "{sys.executable}" -c "{code}"']
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["700", "700", "700"]


def test_one_line_says_that_files_are_wanting(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(connections.time, "monotonic", lambda: now)
    logger = logging.getLogger("test-connections")
    logger.addFilter(connections.OnceAMinute())
    now = 100.0
    for _ in range(1000):
        logger.error(connections.OUT_OF_FILES + "\nmore")
    logger.error("something else")
    now = 200.0
    logger.error(connections.OUT_OF_FILES)
    first, other, second = [record.getMessage() for record in caplog.records]
    assert first.startswith(connections.OUT_OF_FILES) and other == "something else" and "999 times more" in second
