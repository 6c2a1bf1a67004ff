"""Notices children that live but do not answer: stopped by a signal, or hung. `studio up` starts them anew.

Each is asked for its /health by a thread of its own, so that a silent one delays nobody. One that has not answered yet is starting,
which may take any time; what counts is the silence after an answer.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from urllib.parse import urlsplit

from studio import processes
from studio.children import ChildProcess

LOOK_S, ANSWER_S = 1.0, 5.0
STOPPED_S = 5.0  # of silence, where the kernel says that the process is stopped
SILENT_S = 30.0  # else: a busy machine may need seconds
FEWEST = 3  # unanswered questions: after a sleep of the whole machine one alone looks like a long silence
DRAIN_S = 1.0
RETRY_AFTER_S = 10
SORRY = (
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {after}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    "Connection: close\r\n\r\n{body}"
)
SAID = '{"error": {"message": "The studio\'s page did not answer and is started anew. Ask again in a few seconds.", "code": "restarting"}}'


class HealthWatch:
    """One child that must answer at `url`."""

    def __init__(self, child: ChildProcess, url: str) -> None:
        self.child = child
        self._url = url
        self._pid: int | None = None  # that has answered
        self._answered = 0.0
        self._missed = 0
        self._ending = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._look, name=f"watch-{self.child.name}", daemon=True).start()

    def end(self) -> None:
        self._ending.set()

    def silence(self) -> float:
        """Seconds for which it has been silent; 0 where that is no reason to start it anew."""
        pid = self.child.pid
        if pid is None or pid != self._pid or self._missed < FEWEST:
            return 0.0
        silent = time.monotonic() - self._answered
        most = STOPPED_S if processes.is_stopped(pid) else SILENT_S
        return silent if silent > most else 0.0

    def _look(self) -> None:
        while not self._ending.wait(LOOK_S):
            pid = self.child.pid
            if pid is not None:
                self.take(pid, answers(self._url))

    def take(self, pid: int, has_answered: bool) -> None:
        """What became of a question."""
        if has_answered:
            self._pid, self._answered, self._missed = pid, time.monotonic(), 0
        elif pid == self._pid:
            self._missed += 1


def answers(url: str) -> bool:
    """Whether /health of `url` answers, whatever it says."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read(1)
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def tell_waiting(listener: socket.socket) -> int:
    """Answer 503 to all who wait at a socket whose process does not take them; how many these were."""
    text = SORRY.format(after=RETRY_AFTER_S, length=len(SAID), body=SAID).encode()
    told, deadline = 0, time.monotonic() + DRAIN_S
    listener.settimeout(0.05)
    try:
        while time.monotonic() < deadline:
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody waits any more
                break
            with connection, contextlib.suppress(OSError):
                connection.settimeout(0.05)
                with contextlib.suppress(OSError):  # an unread request would make the answer a reset
                    connection.recv(65536)
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                told += 1
    finally:
        listener.settimeout(None)
    return told
