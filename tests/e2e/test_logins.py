"""A browser logs in, makes a key, logs another one out and itself, as a person does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.conftest import quiet_window
from tests.servers import free_port, web

PASSWORD = {"name": "anna", "password": "her password"}


@pytest.mark.long
def test_from_the_login_to_the_end_of_all_logins(browser: Browser, tmp_path: Path) -> None:
    with web(tmp_path / "home", STUDIO_USERS="anna:her password") as server, httpx.Client(base_url=server.url, trust_env=False) as other:
        other.post("/login", data=PASSWORD)
        with quiet_window(browser, server.url) as window:
            page = window.new_page()
            page.goto(f"{server.url}/login?next=%2F%3Ftab%3Dchat")
            page.get_by_label("Name").fill(PASSWORD["name"])
            page.get_by_label("Password").fill(PASSWORD["password"])
            page.get_by_role("button", name="Log in").click()
            page.get_by_text("Ask from a program").click()
            page.get_by_label("Name of a new key").fill("ci")
            page.locator("#chat-key-make").click()
            key = page.locator("#chat-keys .key").inner_text()
            listed = page.locator("#chat-keys .excerpts li")
            expect(listed).to_contain_text("to chat only, made by anna")
            assert httpx.get(f"{server.url}/v1/models", headers={"X-Api-Key": key}, trust_env=False, timeout=60).status_code == 200
            assert httpx.get(f"{server.url}/api/jobs", headers={"X-Api-Key": key}, trust_env=False).status_code == 403
            page.goto(f"{server.url}/?tab=start")
            page.get_by_text("Who is logged in").click()
            assert other.get("/api/jobs").status_code == 200
            page.get_by_role("button", name="Log out all others").click()
            expect(page.get_by_text("1 logged out.")).to_be_visible()
            assert other.get("/api/jobs").status_code == 401
            page.get_by_role("button", name="Log out here").click()
            expect(page.get_by_role("button", name="Log in")).to_be_visible()
        assert other.get("/api/sessions", headers={"X-Api-Key": key}).status_code == 403


ASK = """async ([url, key]) => {
  try {
    const answer = await fetch(url, {method: 'GET', headers: {'Authorization': 'Bearer ' + key, 'X-Made-Up': '1'}});
    return answer.status + ' ' + (await answer.text()).slice(0, 20);
  } catch (error) { return 'blocked'; }
}"""


@pytest.mark.long
def test_a_page_of_another_site_uses_v1_where_it_is_named(browser: Browser, tmp_path: Path) -> None:
    named, unnamed = free_port(), free_port()
    (tmp_path / "index.html").write_text("<title>A client</title>")
    sites = [
        subprocess.Popen(
            [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)], stderr=subprocess.DEVNULL
        )
        for port in (named, unnamed)
    ]
    try:
        with web(tmp_path / "home", STUDIO_TOKEN="a long enough token", STUDIO_ALLOWED_ORIGINS=f"http://localhost:{named}") as server:
            page = browser.new_page()

            def asked(port: int, path: str, key: str) -> str:
                page.goto(f"http://localhost:{port}/")
                return str(page.evaluate(ASK, [f"{server.url}{path}", key]))

            assert asked(named, "/v1/models", "a long enough token").startswith("200 ")
            assert asked(named, "/api/jobs", "a long enough token") == "200 []"
            assert asked(named, "/v1/models", "wrong").startswith("401 ")
            assert asked(named, "/config", "a long enough token") == asked(unnamed, "/v1/models", "a long enough token") == "blocked"
            page.close()
    finally:
        for site in sites:
            site.kill()
            site.wait()
