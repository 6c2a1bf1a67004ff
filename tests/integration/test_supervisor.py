"""`studio up` starts, keeps and ends its processes; nothing is left over, however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from studio import children, lifeline, settings, supervisor
from tests.servers import Server, clean_environment, free_port, studio

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" not in sys.argv:
    subprocess.Popen([sys.executable, "-m", "stubborn", "child"], start_new_session=True)
time.sleep(600)
"""


def until(condition: Callable[[], object], limit_s: float = 180.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - started


def children_of(server: Server) -> dict[str, psutil.Process]:
    """The living children of `studio up` by what they run."""
    found = {}
    for process in psutil.Process(server.process.pid).children():
        if process.status() != psutil.STATUS_ZOMBIE and "-m" in (words := process.cmdline()):
            found[" ".join(words[words.index("-m") + 1 :]).split(" --fd")[0].split(" --port")[0]] = process
    return found


def all_there(server: Server) -> bool:
    return set(children_of(server)) == {"studio.web", "studio.engine.server", "jobs.worker --queue gpu", "jobs.worker --queue light"}


def family(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def up(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "studio", "up", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment(home, **environment), timeout=120)


def test_one_studio_from_its_url_to_its_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with studio(home) as server:
        port = httpx.URL(server.url).port
        assert httpx.get(server.url, trust_env=False, timeout=120).status_code == 200
        until(lambda: all_there(server))

        told = json.loads((home / "studio.json").read_text())
        assert told["url"] == server.url and told["pid"] == server.process.pid and told["engine_key"]
        assert {p.name: p.stat().st_mode & 0o077 for p in home.glob("studio.*") if p.name != "studio.db-shm"} == {
            name: 0 for name in ("studio.db", "studio.db-wal", "studio.json", "studio.lock") if (home / name).exists()
        }

        second = up(home, "--port", "0")
        assert second.returncode == 1 and server.url in second.stderr and len(second.stderr.splitlines()) == 1

        before = children_of(server)
        for process in before.values():
            process.kill()
        # the port stays ours: a caller waits for the new page instead of being refused
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=120).json()["status"] == "ok"
        until(lambda: all_there(server))
        assert not {p.pid for p in before.values()} & {p.pid for p in children_of(server).values()}

        everyone = family(server)
        server.process.send_signal(signal.SIGTERM)
        assert until(lambda: server.process.poll() is not None) < 10
        assert server.process.returncode == 0 and not [p for p in everyone if runs(p)]
        assert not (home / "studio.json").exists()
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_killed_studio_leaves_no_process_and_starts_again_at_once(tmp_path: Path) -> None:
    home, port = tmp_path / "home", str(free_port())
    with studio(home, "--host", "0.0.0.0", "--port", port) as server:
        # others can reach this host, so the printed address carries a token
        address, _, token = server.url.partition("/?token=")
        assert httpx.get(f"{address}/api/jobs", trust_env=False, timeout=120).status_code == 401
        assert (
            httpx.get(f"{address}/api/jobs", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=120).status_code == 200
        )
        until(lambda: all_there(server))
        everyone = family(server)
        server.process.kill()
        until(lambda: not [p for p in everyone if runs(p)], limit_s=60)
    with studio(home, "--port", port) as server:
        assert server.url == f"http://127.0.0.1:{port}"


def test_a_taken_port_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = up(tmp_path / "home", "--port", str(port))
    assert done.returncode == 1 and f"Port {port}" in done.stderr and f"--port {port + 1}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_an_address_of_another_machine_is_one_line(tmp_path: Path, host: str) -> None:
    done = up(tmp_path / "home", "--host", host, "--port", "0")
    assert done.returncode == 1 and "no address of this machine" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_home_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = up(tmp_path / "file" / "home")
    assert done.returncode == 1 and "STUDIO_HOME" in done.stderr and len(done.stderr.splitlines()) == 1


def child(tmp_path: Path, source: str) -> children.ChildProcess:
    (tmp_path / "stubborn.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return children.ChildProcess("stubborn", ["stubborn"], environment, tmp_path)


def test_what_ignores_its_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    kept = children.Children(print)
    pid = kept.start(child(tmp_path, STUBBORN)).pid
    until(lambda: psutil.Process(pid).children())
    everyone = [psutil.Process(pid), *psutil.Process(pid).children()]
    started = time.monotonic()
    kept.stop()
    assert children.GRACE_S <= time.monotonic() - started < 60
    assert not [p for p in everyone if runs(p)]


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    kept = children.Children(print)
    pid = kept.start(child(tmp_path, STUBBORN)).pid
    until(lambda: psutil.Process(pid).children())
    started = time.monotonic()
    kept.stop(hurry=lambda: True)
    assert time.monotonic() - started < children.GRACE_S and not psutil.pid_exists(pid)


def test_what_dies_at_each_start_is_left_out_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_BACKOFF_S", 0.001)
    said: list[str] = []
    kept = children.Children(said.append)
    started = kept.start(child(tmp_path, "print('x'); raise SystemExit(5)"))
    until(lambda: (kept.tend(), started.is_given_up)[1])
    assert (tmp_path / "stubborn.log").read_text() == "x\n" * (1 + children.MAX_QUICK_DEATHS)
    assert len(said) == 1 and "exit 5" in said[0] and "stubborn.log" in said[0]


def test_what_is_killed_is_started_again_however_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_BACKOFF_S", 0.0)
    kept = children.Children(print)
    started = kept.start(child(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    seen: set[int] = set()
    until(lambda: (kept.tend(), seen.add(started._process.pid), len(seen) > children.MAX_QUICK_DEATHS + 2)[2])  # type: ignore[func-returns-value, union-attr]
    assert not started.is_given_up
    kept.stop()


def test_what_can_not_work_is_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    kept = children.Children(said.append)
    started = kept.start(child(tmp_path, f"print('Set it right.'); raise SystemExit({lifeline.EXIT_MUST_CHANGE})"))
    until(lambda: (kept.tend(), started.is_given_up)[1])
    assert said == ["Set it right."]


TALKER = """
import sys, time
from studio import lifeline
lifeline.end_with_parent()
for number in range(3000):
    print(f"{number:06d} " + "x" * 40, flush=True)
    time.sleep(0.0003)
print("end", flush=True)
time.sleep(600)
"""


def test_a_log_rotates_while_it_is_written_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "MAX_LOG_BYTES", 20_000)
    kept = children.Children(print)
    started = kept.start(child(tmp_path, TALKER))
    log, old = started.log, tmp_path / "stubborn.old.log"
    rotated: list[str] = []  # each old log before the next one takes its place

    def look() -> bool:
        if old.exists() and log.stat().st_size > children.MAX_LOG_BYTES:
            rotated.append(old.read_text())
        kept.tend()
        return "end" in log.read_text() or (old.exists() and "end" in old.read_text())

    pid = started.pid
    until(look)
    kept.stop()
    lines = "".join([*rotated, old.read_text(), log.read_text()]).splitlines()
    assert [line[:6] for line in lines] == [f"{number:06d}" for number in range(3000)] + ["end"]
    assert len(rotated) >= 2 and pid is not None and started.exit_code is not None
    assert {path.name for path in tmp_path.glob("*.log")} == {"stubborn.log", "stubborn.old.log"}


def test_the_last_words_are_found_in_a_log_that_was_rotated_just_before(tmp_path: Path) -> None:
    talker = child(tmp_path, "")
    (tmp_path / "stubborn.old.log").write_text("first\nSet it right.\n")
    talker.log.touch()
    assert talker.last_words() == "Set it right."


def test_a_stale_studio_json_is_no_running_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path))
    loaded = settings.load()
    value = {"pid": os.getpid(), "born": 1.0, "url": "http://127.0.0.1:1", "engine_url": "", "engine_key": "", "started": 0.0}
    (tmp_path / "studio.json").write_text(json.dumps(value))
    assert supervisor.running(loaded) is None  # this PID belongs to another process than the one that wrote it
    (tmp_path / "studio.json").write_text("{")
    assert supervisor.running(loaded) is None


def test_a_command_gets_its_own_engine_for_as_long_as_it_runs(settings: settings.Settings) -> None:
    with supervisor.assistance(settings, print, queues=("light",), engine=True) as assisted:
        headers = {"Authorization": f"Bearer {assisted.engine_key}"}

        def engine_answers() -> bool:
            try:
                return httpx.get(f"{assisted.engine_url}/engine/status", headers=headers, trust_env=False, timeout=120).status_code == 200
            except httpx.TransportError:
                return False

        until(engine_answers)
        started = [p for p in psutil.Process().children() if "studio.engine.server" in p.cmdline() or "jobs.worker" in p.cmdline()]
        assert len(started) == 2
    assert not [p for p in started if runs(p)]
