"""Real web processes and whole studios, for the tests that speak HTTP to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil


@dataclass(frozen=True)
class Server:
    """A process of ours that answers at `url`."""

    url: str
    home: Path
    process: subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """This environment without anything that a person may have set for their own studio."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STUDIO_", "SPACE_")) and name != "HF_TOKEN"}
    return {**kept, "STUDIO_HOME": str(home), "HF_HUB_OFFLINE": "1", **more}


@contextmanager
def web(home: Path, **environment: str) -> Iterator[Server]:
    """`python -m studio.web` on a free port, once its /health answers."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = clean_environment(home, STUDIO_PORT=str(port), **environment)
    with (home / "web-test.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "studio.web"], stdin=subprocess.PIPE, stdout=log, stderr=log, env=env, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, home / "web-test.log")
        yield Server(url, home, process)
    finally:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()


@contextmanager
def studio(home: Path, *arguments: str, python: str | Path = sys.executable, **environment: str) -> Iterator[Server]:
    """`studio up` on a free port, once it has printed its URL; nothing of it is left afterwards."""
    command = [str(python), "-m", "studio", "up", *(arguments or ("--port", "0"))]
    env = clean_environment(home, **environment)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True)
    assert process.stdout
    family: set[psutil.Process] = set()
    try:
        line = process.stdout.readline()
        assert "http://" in line, line + process.stdout.read()
        yield Server(line.split()[-1].rstrip("/"), home, process)
    finally:
        if process.poll() is None:
            family = set(psutil.Process(process.pid).children(recursive=True))
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=120)
        finally:
            for left in family:
                if left.is_running():
                    left.kill()
            process.kill()
            process.wait()
            process.stdout.close()


def wait_for(url: str, process: subprocess.Popen[str], log: Path, limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=10, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def processes_of(home: Path) -> list[psutil.Process]:
    """Every living process that works on this STUDIO_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("STUDIO_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found
