"""/health speaks for the page: where it can't be built, health check, supervisor and doctor say so, and why."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from studio import __version__, peers, web
from studio.records import PageHealth, PageState
from studio.settings import Settings
from tests.servers import clean_environment, studio

REASON = "RuntimeError: no gradio today, second line"


def test_health_says_while_the_page_is_being_built_and_why_it_can_not_be(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    may_fail = threading.Event()

    def build(*_: Any) -> Any:
        may_fail.wait(60)
        raise RuntimeError("no gradio today,\n  second line")

    monkeypatch.setattr(web, "_build_page", build)
    monkeypatch.setattr(peers, "is_own_user", lambda _scope: True)  # no connection, so nobody's
    app = web.create_app(settings)
    with ExitStack() as stack:
        stack.callback(app.state.studio.db.dispose)
        client = stack.enter_context(TestClient(app, base_url="http://127.0.0.1:7860"))
        early = client.get("/health")
        assert early.status_code == 200 and early.json()["page"] == "starting" and "reason" not in early.json()
        may_fail.set()
        page = client.get("/")
        assert page.status_code == 503 and REASON in page.text and len(page.text.splitlines()) == 1
        late = client.get("/health")
        assert late.status_code == 503
        assert late.json() == {"status": "failed", "version": __version__, "engine": "starting", "page": "failed", "reason": REASON}
        checks = {check["name"]: check for check in client.get("/api/doctor").json()["checks"]}
        assert not checks["page"]["ok"] and REASON in checks["page"]["detail"] and checks["page"]["fix"]
        assert client.get("/api/datasets").json() == []  # the rest goes on


@pytest.mark.parametrize(
    ("reason", "answered"),
    [
        ("FileNotFoundError: no '/home/ann lee/.studio/page.css'", "FileNotFoundError: no 'page.css'"),
        ("ImportError: no Blocks (/usr/lib/gradio/__init__.py)", "ImportError: no Blocks (__init__.py)"),
        ("OSError: /srv/studio/studio.db: disk full", "OSError: studio.db: disk full"),
        ("ValueError: 1/2 of http://127.0.0.1/a/b is no page", "ValueError: 1/2 of http://127.0.0.1/a/b is no page"),
        ("", None),
    ],
)
def test_health_names_no_folder_since_anyone_may_read_it(settings: Settings, reason: str, answered: str | None) -> None:
    app = web.create_app(settings)
    page = next(route.app for route in app.routes if isinstance(getattr(route, "app", None), web.PageApp))
    page.health = PageHealth(state=PageState.FAILED, reason=reason)
    try:
        found = TestClient(app, base_url="http://127.0.0.1:7860").get("/health")  # not entered: no page is built
        assert found.status_code == 503 and found.json().get("reason") == answered
    finally:
        app.state.studio.db.dispose()


def test_a_database_that_another_program_holds_is_told_soon_and_with_when_to_ask_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "BUSY_S", 0.05)
    monkeypatch.setattr(peers, "is_own_user", lambda _scope: True)  # no connection, so nobody's
    app = web.create_app(settings)
    client = TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
    other = sqlite3.connect(settings.home / "studio.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        held = client.post("/api/keys", json={"name": "mine"})
        assert held.status_code == 503 and held.headers["Retry-After"] == "5", held.text
        assert held.json()["error"]["message"] == "The studio's database is held by another program."
        assert client.get("/api/datasets").status_code == 200, "looking goes on"
        other.execute("ROLLBACK")
        assert client.post("/api/keys", json={"name": "mine"}).status_code < 300
        other.execute("ALTER TABLE datasets RENAME TO gone")
        broken = client.get("/api/datasets")
        assert broken.status_code == 500 and "no such table" in broken.text and "Retry-After" not in broken.headers
    finally:
        other.close()
        app.state.studio.db.dispose()


def doctor(environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "studio", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}["page"]


@pytest.mark.long
def test_supervisor_and_doctor_name_the_reason(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "gradio.py").write_text("raise RuntimeError('no gradio today,\\n second line')\n")
    broken = {"PYTHONPATH": str(tmp_path)}
    with studio(home, **broken) as server:
        assert server.process.stdout is not None
        told = server.process.stdout.readline()
        assert "The page can't be built" in told and REASON in told and "web.log" in told
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=120).status_code == 503
        running = doctor(clean_environment(home))  # the page of the running studio counts, not what this process could build
        assert not running["ok"] and REASON in running["detail"] and running["fix"]
    stopped = doctor(clean_environment(home, **broken))
    assert not stopped["ok"] and REASON in stopped["detail"]
    mended = doctor(clean_environment(home))
    assert mended["ok"] and "no studio runs here" in mended["detail"] and not mended["fix"]
