"""Processes that live and do not answer (SIGSTOP): those of `studio up` are replaced, whoever waits is told or answered.

`make chaos` prints how long each took.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.servers import Server, studio

ASKED = {"model": "starter", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def process(server: Server, words: str) -> psutil.Process | None:
    """The living process of the studio that runs `words`."""
    for one in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if words in " ".join(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE:
                return one
        except psutil.Error:
            continue
    return None


def chat(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=ASKED, timeout=180, trust_env=False)


def until_replaced(server: Server, words: str, before: psutil.Process) -> float:
    began = time.monotonic()
    while (found := process(server, words)) is None or found.pid == before.pid:
        assert time.monotonic() - began < 120, f"{words} was not replaced"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.long
def test_what_is_stopped_is_replaced_and_the_next_chat_is_answered(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = []
    with studio(tmp_path / "home") as server:
        while chat(server).status_code != 200:
            time.sleep(0.5)
        for words in ("studio.engine.server", "studio.engine.model_child", "studio.web"):
            before = process(server, words)
            assert before is not None
            time.sleep(3)  # it has answered its watch since the last replacement
            before.send_signal(signal.SIGSTOP)
            waiting: list[Any] = []
            asking = threading.Thread(target=lambda found=waiting: found.append(_tried(server)))
            began = time.monotonic()
            asking.start()
            replaced = until_replaced(server, words, before) if words != "studio.engine.model_child" else 0.0
            asking.join(timeout=180)
            told, told_s = waiting[0], time.monotonic() - began
            assert told in (200, 503), (words, told)
            while chat(server).status_code != 200:
                assert time.monotonic() - began < 180
                time.sleep(0.25)
            after = process(server, words)
            assert after is not None and after.pid != before.pid, words
            lines.append(
                f"{words} stopped: replaced after {replaced:.1f} s, who waited got {told} after {told_s:.1f} s, "
                f"an answer after {time.monotonic() - began:.1f} s"
            )
    with capfd.disabled():
        print("\n" + "\n".join(lines))


def _tried(server: Server) -> int:
    try:
        return chat(server).status_code
    except httpx.TransportError:
        return 0
